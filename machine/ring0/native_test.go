package ring0_test

import (
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/native"
	"vmm/machine/ring0"
)

// idleBoard is a machine without anything but extended state.
type idleBoard struct {
	noHost
	area [4096]byte
}

func (b *idleBoard) XSave(a []byte) error    { copy(a, b.area[:]); return nil }
func (b *idleBoard) SetXSave(a []byte) error { copy(b.area[:], a); return nil }
func (b *idleBoard) XCR0() (uint64, error)   { return 7, nil }

func (*idleBoard) Port(uint16, []byte, bool) bool       { return true }
func (*idleBoard) Device(uint64, []byte, bool) bool     { return true }
func (*idleBoard) CPUIDOf(uint32, uint32) (v [4]uint32) { return v }
func (*idleBoard) ReadMSR(uint32) (uint64, bool)        { return 0, false }
func (*idleBoard) WriteMSR(uint32, uint64) bool         { return false }
func (*idleBoard) SetXCR0(uint64) bool                  { return false }
func (*idleBoard) CR8() uint64                          { return 0 }
func (*idleBoard) SetCR8(uint64)                        {}
func (*idleBoard) InterruptWanted() bool                { return false }

// cpuOracle is the host's own CPU beside an executor: the same instruction with the same
// registers and the same memory, which both have at the same address.
type cpuOracle struct {
	unit  *native.Unit
	cpu   *ring0.CPU
	board idleBoard
	mem   ram
	// translated has the executor translate.
	translated bool
}

// Where the executor's memory has what: tables, the code, and what the unit's scratch
// memory is to the host.
const (
	oracleTables = 0x1000
	oracleCode   = 0x100000
	oracleData   = 0x200000
)

func newCPUOracle(t *testing.T, translated bool) *cpuOracle {
	t.Helper()
	unit, err := native.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unit.Close() })
	o := &cpuOracle{unit: unit, mem: newMemory(t), translated: translated}
	if o.cpu, err = ring0.NewComplete(&o.board, ring0.NewMemory(o.mem), [64]ring0.Component{2: {Offset: 576, Size: 256}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.cpu.Close() })
	if translated {
		o.cpu.TrapInt3 = true
		if err := o.cpu.Translate(); err != nil {
			t.Fatal(err)
		}
	}
	free := uint64(oracleTables + 0x1000)
	for linear, gpa := range map[uint64]uint64{o.scratch() &^ 4095: oracleData, oracleCode: oracleCode} {
		table := uint64(oracleTables)
		for shift := 39; shift > 12; shift -= 9 {
			entry := o.mem[table+linear>>shift&511*8:]
			if binary.LittleEndian.Uint64(entry) == 0 {
				binary.LittleEndian.PutUint64(entry, free|7)
				free += 0x1000
			}
			table = binary.LittleEndian.Uint64(entry) &^ 4095
		}
		binary.LittleEndian.PutUint64(o.mem[table+linear>>12&511*8:], gpa|7)
	}
	return o
}

// scratch is the address of the memory that both have.
func (o *cpuOracle) scratch() uint64 { return uint64(uintptr(unsafe.Pointer(&o.unit.Scratch))) }

// memory is the executor's.
func (o *cpuOracle) memory() []byte { return o.mem[oracleData+o.scratch()&4095:][:native.ScratchSize] }

// compare executes one instruction with both. It reports false where it is not for this.
func (o *cpuOracle) compare(t *testing.T, code []byte, regs kvm.Regs) bool {
	t.Helper()
	undefined, ok := ring0.Comparable(code)
	if !ok {
		return false
	}
	copy(o.memory(), o.unit.Scratch[:])
	clear(o.mem[oracleCode : oracleCode+32])
	const int3 = 0xcc
	copy(o.mem[oracleCode:], append(code[:len(code):len(code)], int3))
	o.cpu.Changed(100)
	seg := kvm.Segment{Selector: 0x2b, Type: 11, S: 1, DPL: 3, Present: 1, L: 1, G: 1, Limit: 0xffffffff}
	ss := seg
	ss.Type, ss.L = 3, 0
	o.board.area = [4096]byte{}
	binary.LittleEndian.PutUint16(o.unit.XSave[:], 0x37f)
	binary.LittleEndian.PutUint32(o.unit.XSave[24:], 0x1f80)
	copy(o.board.area[:], o.unit.XSave[:])
	binary.LittleEndian.PutUint64(o.board.area[512:], 7)
	o.cpu.ForgetExtended()
	regs.RIP = oracleCode
	regs.RFLAGS |= 0x200 // IF, as the host's programs have it
	o.cpu.Reset(&regs, &kvm.Sregs{CS: seg, SS: ss, CR0: x86.CR0PE | x86.CR0PG | x86.CR0WP, CR3: oracleTables, CR4: x86.CR4PAE, EFER: x86.EFERLME | x86.EFERLMA})
	budget := 1
	if o.translated {
		budget = 1000
	}
	stop := o.cpu.Run(budget)
	var got kvm.Regs
	var sregs kvm.Sregs
	o.cpu.Store(&got, &sregs)

	u := o.unit
	u.GPR = [16]uint64{regs.RAX, regs.RCX, regs.RDX, regs.RBX, regs.RSP, regs.RBP, regs.RSI, regs.RDI,
		regs.R8, regs.R9, regs.R10, regs.R11, regs.R12, regs.R13, regs.R14, regs.R15}
	u.Flags = regs.RFLAGS
	trap, ok := u.Run(&native.Piece{Code: code})
	if !ok {
		// Without an IDT an exception shuts the executor down, and tells which.
		if stop != ring0.StopShutdown || o.cpu.First.Vector != trap.Vector {
			t.Errorf("% x with %x: the CPU raises %d, the executor %v, %+v", code, regs, trap.Vector, stop, o.cpu.First)
		}
		return true
	}
	g := &u.GPR
	want := kvm.Regs{RAX: g[0], RCX: g[1], RDX: g[2], RBX: g[3], RSP: g[4], RBP: g[5], RSI: g[6], RDI: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15],
		RIP: oracleCode + uint64(len(code))}
	const arithmetic = 0x8d5
	flags := (u.Flags ^ got.RFLAGS) & arithmetic &^ undefined
	got.RFLAGS = 0
	if got != want || flags != 0 {
		t.Errorf("% x with %x, %v:\n got %x\nwant %x\nflags that differ: %#x", code, regs, stop, got, want, flags)
	}
	if err := o.cpu.StoreExtended(); err != nil {
		t.Fatal(err)
	}
	for _, part := range [][2]int{{0, 2}, {24, 28}, {32, 416}, {576, 832}} { // FCW, MXCSR, the registers
		if a, b := o.board.area[part[0]:part[1]], u.XSave[part[0]:part[1]]; string(a) != string(b) {
			t.Errorf("% x with %x: extended state at %d:\n% x\n% x", code, regs, part[0], a, b)
		}
	}
	for i, b := range o.memory() {
		if b != u.Scratch[i] {
			t.Errorf("% x with %x: memory at %d: %#x, want %#x", code, regs, i, b, u.Scratch[i])
			break
		}
	}
	return true
}

// TestAgainstCPU executes random instructions from random states in a complete CPU and on
// the host's, and wants the same registers, flags, memory and exceptions.
func TestAgainstCPU(t *testing.T) { eachOracle(t, testAgainstCPU) }

// eachOracle runs a test with an executor that interprets, and with one that translates.
func eachOracle(t *testing.T, test func(*testing.T, *cpuOracle)) {
	t.Run("interpreted", func(t *testing.T) { test(t, newCPUOracle(t, false)) })
	t.Run("translated", func(t *testing.T) {
		o := newCPUOracle(t, true)
		test(t, o)
		if n := o.cpu.Translated(); n < 10000 {
			t.Errorf("translations have just %d ends", n)
		}
	})
}

func testAgainstCPU(t *testing.T, o *cpuOracle) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	compared, n := 0, 200000
	if testing.Short() {
		n = 20000
	}
	for range n {
		for i := range o.unit.Scratch {
			o.unit.Scratch[i] = byte(r.Uint32())
		}
		regs := randomRegs(r)
		regs.RBX, regs.RSP = o.scratch()+32+uint64(r.IntN(64)), o.scratch()+128
		regs.RSI, regs.RDI = o.scratch()+64, o.scratch()+160
		if o.compare(t, randomInstruction(r), regs) {
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

// TestProgramsAgainstCPU executes the instructions of programs of this machine's, one by
// one and from random states, in a complete CPU and on the host's.
func TestProgramsAgainstCPU(t *testing.T) { eachOracle(t, testProgramsAgainstCPU) }

func testProgramsAgainstCPU(t *testing.T, o *cpuOracle) {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	seen, compared := map[string]bool{}, 0
	for _, path := range []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib/x86_64-linux-gnu/libbfd-2.40-system.so", "/proc/self/exe"} {
		f, err := elf.Open(path)
		if err != nil {
			continue // another system
		}
		text, err := f.Section(".text").Data()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+15 < len(text); {
			code, n := ring0.Rewritten(text[at : at+15])
			at += max(n, 1)
			if code == nil || seen[string(code)] {
				continue
			}
			seen[string(code)] = true
			for i := range o.unit.Scratch {
				o.unit.Scratch[i] = byte(r.Uint32())
			}
			for i := range o.unit.XSave[160:832] {
				o.unit.XSave[160+i] = byte(r.Uint32())
			}
			regs := randomRegs(r)
			regs.RBX, regs.RSP = o.scratch()+32, o.scratch()+128
			regs.RSI, regs.RDI, regs.RCX = o.scratch()+64, o.scratch()+160, uint64(r.IntN(5))
			if o.compare(t, code, regs) {
				compared++
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d of %d instructions compared", compared, len(seen))
}
