package ring0_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/kvm"
	"vmm/machine"
	"vmm/machine/ring0"
)

// ram is guest memory for a test: contiguous from 0.
type ram []byte

func (m ram) Slice(gpa, n uint64) ([]byte, error) { return m[gpa : gpa+n], nil }
func (m ram) Size() uint64                        { return uint64(len(m)) }
func (m ram) Page(gpa uint64) *[4096]byte {
	gpa &^= 4095
	if gpa >= uint64(len(m)) {
		return nil
	}
	return (*[4096]byte)(m[gpa:])
}

// noHost is a host that can do nothing: what needs it is handed over.
type noHost struct{}

func (noHost) XSave([]byte) error         { return unix.ENOTSUP }
func (noHost) SetXSave([]byte) error      { return unix.ENOTSUP }
func (noHost) XSaveSize() int             { return 4096 }
func (noHost) XCR0() (uint64, error)      { return 0, unix.ENOTSUP }
func (noHost) MSR(uint32) (uint64, error) { return 0, unix.ENOTSUP }
func (noHost) TSC() uint64                { return 0 }

// oracle is a vCPU of KVM beside an executor on the same memory.
type oracle struct {
	mem    ram
	vcpu   *kvm.VCPU
	cpu    *ring0.CPU
	s      kvm.Sregs
	tables []byte // the memory up to testTables as it is to be
}

const (
	testTables = 0x10000 // the GDT and the page tables end here
	testCode   = 0x100000
	testData   = 0x200000
	testStack  = 0x300000
)

func newMemory(t testing.TB) ram {
	mem, err := unix.Mmap(-1, 0, 8<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

func newCPU(t *testing.T, mem ram) *ring0.CPU {
	cpu, err := ring0.New(noHost{}, ring0.NewTables(mem, func(uint64) error { return nil }), [64]ring0.Component{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cpu.Close() })
	return cpu
}

func newOracle(t *testing.T) *oracle {
	t.Helper()
	if _, err := os.Stat(kvm.DevicePath); err != nil {
		t.Skip("no /dev/kvm on this machine")
	}
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	// A CPU is another oracle than KVM's interpreter, in whose place the executor is:
	// what the architecture leaves undefined it does in its own way, and an emulated
	// one does not even step each instruction.
	if speed, err := machine.MeasureSpeed(machine.KVMEngine); err != nil || !speed.Interpreted {
		sys.Close()
		t.Skipf("this host runs guest kernel mode on hardware, and the executor is compared with a KVM that interprets it (%v)", err)
	}
	t.Cleanup(func() { sys.Close() })
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	if err := vm.SetTSSAddr(0xfffbd000); err != nil {
		t.Fatal(err)
	}
	o := &oracle{mem: newMemory(t)}
	if err := vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{MemorySize: uint64(len(o.mem)),
		UserspaceAddr: uint64(uintptr(unsafe.Pointer(&o.mem[0])))}); err != nil {
		t.Fatal(err)
	}
	if o.vcpu, err = vm.CreateVCPU(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.vcpu.Close() })
	ids, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.vcpu.SetCPUID(ids); err != nil {
		t.Fatal(err)
	}
	e, err := bootloader.LongMode(o.mem, testCode, false)
	if err != nil {
		t.Fatal(err)
	}
	if o.s, err = o.vcpu.Sregs(); err != nil {
		t.Fatal(err)
	}
	e.Apply(&o.s)
	if err := o.vcpu.SetSregs(&o.s); err != nil {
		t.Fatal(err)
	}
	if err := o.vcpu.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugSingleStep}); err != nil {
		t.Fatal(err)
	}
	o.tables = bytes.Clone(o.mem[:testTables])
	o.cpu = newCPU(t, o.mem)
	return o
}

// compare executes one instruction with both. It reports false where one of
// them declines.
func (o *oracle) compare(t *testing.T, code []byte, regs kvm.Regs) bool {
	t.Helper()
	copy(o.mem[testCode:], make([]byte, 32))
	copy(o.mem[testCode:], code)
	regs.RIP = testCode
	o.cpu.Load(&regs, &o.s)
	trial, ok := o.cpu.Try()
	if !ok || trial.Repeats() || comparesRegisters(code) {
		return false
	}
	if err := o.vcpu.SetSregs(&o.s); err != nil {
		t.Fatal(err)
	}
	if err := o.vcpu.SetRegs(&regs); err != nil {
		t.Fatal(err)
	}
	for {
		err := o.vcpu.Run()
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if o.vcpu.Shared().ExitReason != kvm.ExitDebug {
		copy(o.mem, o.tables) // some instruction may have written there
		return false          // KVM does not know it, or it faults
	}
	got, err := o.vcpu.Regs()
	if err != nil {
		t.Fatal(err)
	}
	s, err := o.vcpu.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	if err := trial.Check(&got, &s); err != nil {
		t.Errorf("% x with %x:\n%v", code, regs, err)
	}
	return true
}

// comparesRegisters reports whether an instruction is a CMPXCHG of registers: where they
// differ KVM clears the destination's upper half, and CPUs leave it (TestAgainstCPU).
func comparesRegisters(code []byte) bool {
	for len(code) > 0 && (code[0] == 0x66 || code[0]&0xf0 == 0x40) {
		code = code[1:]
	}
	return len(code) > 2 && code[0] == 0x0f && code[1] == 0xb1 && code[2]>>6 == 3
}

// randomRegs returns registers that address the data page with small and
// large values between them.
func randomRegs(r *rand.Rand) kvm.Regs {
	value := func() uint64 {
		switch r.IntN(4) {
		case 0:
			return uint64(r.IntN(64))
		case 1:
			return ^uint64(r.IntN(64))
		case 2:
			return 1 << r.IntN(64)
		}
		return r.Uint64()
	}
	return kvm.Regs{
		RAX: value(), RCX: value(), RDX: value(), RBP: value(), R8: value(), R9: value(), R10: value(),
		R11: value(), R12: value(), R13: value(), R14: value(), R15: value(),
		RBX: testData + uint64(r.IntN(64)), RSI: testData + 256, RDI: testData + 512,
		RSP: testStack, RFLAGS: 2 | r.Uint64()&0x8d5,
	}
}

// families are opcodes with a ModRM, without and with immediates.
var families = []struct {
	op  []byte
	imm int // -1: of the operand's size, at most 4
}{
	{[]byte{0x63}, 0}, {[]byte{0x69}, -1}, {[]byte{0x6b}, 1}, {[]byte{0x80}, 1}, {[]byte{0x81}, -1}, {[]byte{0x83}, 1},
	{[]byte{0x84}, 0}, {[]byte{0x85}, 0}, {[]byte{0x86}, 0}, {[]byte{0x87}, 0}, {[]byte{0x88}, 0}, {[]byte{0x89}, 0},
	{[]byte{0x8a}, 0}, {[]byte{0x8b}, 0}, {[]byte{0x8d}, 0}, {[]byte{0xc0}, 1}, {[]byte{0xc1}, 1}, {[]byte{0xc6}, 1},
	{[]byte{0xc7}, -1}, {[]byte{0xd0}, 0}, {[]byte{0xd1}, 0}, {[]byte{0xd2}, 0}, {[]byte{0xd3}, 0}, {[]byte{0xf6}, 0},
	{[]byte{0xf7}, 0}, {[]byte{0xfe}, 0}, {[]byte{0xff}, 0}, {[]byte{0x0f, 0xa3}, 0}, {[]byte{0x0f, 0xab}, 0},
	{[]byte{0x0f, 0xb3}, 0}, {[]byte{0x0f, 0xbb}, 0}, {[]byte{0x0f, 0xba}, 1}, {[]byte{0x0f, 0xa4}, 1}, {[]byte{0x0f, 0xa5}, 0},
	{[]byte{0x0f, 0xac}, 1}, {[]byte{0x0f, 0xad}, 0}, {[]byte{0x0f, 0xaf}, 0}, {[]byte{0x0f, 0xb0}, 0}, {[]byte{0x0f, 0xb1}, 0},
	{[]byte{0x0f, 0xb6}, 0}, {[]byte{0x0f, 0xb7}, 0}, {[]byte{0x0f, 0xbe}, 0}, {[]byte{0x0f, 0xbf}, 0},
	{[]byte{0x0f, 0xc0}, 0}, {[]byte{0x0f, 0xc1}, 0}, {[]byte{0x0f, 0xc3}, 0},
}

// randomInstruction makes an instruction of the integer set.
func randomInstruction(r *rand.Rand) []byte {
	var code []byte
	if r.IntN(4) == 0 {
		code = append(code, 0x66)
	}
	rex := byte(0x40 | r.IntN(16))
	if r.IntN(3) > 0 {
		code = append(code, rex)
	}
	op, imm := []byte{byte(r.IntN(8)<<3 | r.IntN(4))}, 0 // ADD, OR, ... with ModRM
	switch n := r.IntN(8); {
	case n < 4:
		f := families[r.IntN(len(families))]
		op, imm = f.op, f.imm
		if len(op) == 2 && op[1]&0xf6 == 0xa4 && len(code) > 0 && code[0] == 0x66 {
			code = code[1:] // SHLD and SHRD of 16 bits by more are undefined
		}
	case n == 4:
		op = []byte{0x0f, byte([]int{0x40, 0x90}[r.IntN(2)] | r.IntN(16))}
	case n == 5: // no ModRM
		return append(code, [][]byte{{0x98}, {0x99}, {0x9c}, {0xa4}, {0xa5}, {0xa6}, {0xaa}, {0xab}, {0xac}, {0xae}, {0xf5},
			{0xf8}, {0xf9}, {0xfc}, {0x50}, {0x53}, {0x58}, {0x91}, {0x92}, {0x0f, 0xc8}, {0x0f, 0xcb}, {0xe3, 5}, {0x74, 9},
			{0x7f, 0x80}, {0xeb, 3}, {0xc3}, {0xc9}, {0xe8, 1, 2, 0, 0}}[r.IntN(28)]...)
	}
	code = append(code, op...)
	reg := byte(r.IntN(8)) << 3
	switch r.IntN(4) {
	case 0: // memory at RBX with a displacement
		code = append(code, 0x43|reg, byte(r.IntN(64)))
	case 1: // at RSI with an index and a scale
		code = append(code, 0x04|reg, byte(r.IntN(4))<<6|4<<3|6)
	default:
		code = append(code, 0xc0|reg|byte(r.IntN(8)))
	}
	if imm < 0 {
		imm = 4
	}
	for range imm {
		code = append(code, byte(r.Uint32()))
	}
	return code
}

// TestAgainstKVM executes random instructions from random states in the
// executor and in KVM and wants the same registers, flags and memory.
func TestAgainstKVM(t *testing.T) {
	o := newOracle(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	compared, n := 0, 60000
	if testing.Short() {
		n = 5000
	}
	for range n {
		for i := range 1024 {
			o.mem[testData+i] = byte(r.Uint32())
		}
		if o.compare(t, randomInstruction(r), randomRegs(r)) {
			compared++
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d of %d instructions compared", compared, n)
	if compared < n/3 {
		t.Errorf("only %d of %d instructions were executed by both", compared, n)
	}
}

func (m ram) WritePage(uint64) {}

func (m ram) Mapped(uint64, bool) *[4096]byte { return nil }
