package irqchip

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/kvm"
)

// chipsCPUs is how many local APICs are compared. CPU 0 is the one that runs.
const chipsCPUs = 3

// kvmGuest is a VM of KVM whose CPU 0 does accesses that it is told, in 32-bit code without
// pages, and whose interrupt chips are the ones to compare with.
type kvmGuest struct {
	t     *testing.T
	mem   []byte
	vm    *kvm.VM
	cpus  []*kvm.VCPU
	sregs kvm.Sregs
}

// Where things are in the guest's memory, and what its code tells by.
const (
	guestGDT      = 0x0800
	guestIDT      = 0x1000
	guestStubs    = 0x2000 // 16 bytes a vector
	guestCode     = 0x4000
	guestStack    = 0x7000
	guestSize     = 0x8000
	portDone      = 0x10 // the code's end, with EAX
	portVector    = 0x11 // an exception or interrupt
	codeSelector  = 0x08
	dataSelector  = 0x10
	interruptsOff = 0x2 // in RFLAGS
	interruptsOn  = 0x202
)

func newKVMGuest(t *testing.T) *kvmGuest {
	t.Helper()
	if _, err := os.Stat(kvm.DevicePath); err != nil {
		t.Skip("no /dev/kvm on this machine, whose interrupt chips are what is compared with")
	}
	sys, err := kvm.Open()
	if err != nil {
		t.Skipf("needs %s: %v", kvm.DevicePath, err)
	}
	t.Cleanup(func() { sys.Close() })
	g := &kvmGuest{t: t}
	g.vm, err = sys.CreateVM()
	g.must(err)
	t.Cleanup(func() { g.vm.Close() })
	g.must(g.vm.SetIdentityMapAddr(0xfffbc000))
	g.must(g.vm.SetTSSAddr(0xfffbd000))
	g.mem, err = unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	g.must(err)
	t.Cleanup(func() { unix.Munmap(g.mem) })
	g.must(g.vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{MemorySize: guestSize, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&g.mem[0])))}))
	g.must(g.vm.CreateIRQChip())
	g.must(g.vm.CreatePIT2(kvm.PITConfig{Flags: kvm.PITSpeakerDummy}))
	ids, err := sys.SupportedCPUID()
	g.must(err)
	for i := range ids {
		if ids[i].Function == 1 {
			const x2apic, deadline = 1 << 21, 1 << 24
			ids[i].ECX |= x2apic | deadline
		}
	}
	for id := range chipsCPUs {
		v, err := g.vm.CreateVCPU(id)
		g.must(err)
		t.Cleanup(func() { v.Close() })
		g.must(v.SetCPUID(ids))
		g.cpus = append(g.cpus, v)
	}
	g.prepare()
	return g
}

func (g *kvmGuest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// prepare writes the tables and makes CPU 0 run 32-bit code.
func (g *kvmGuest) prepare() {
	le := binary.LittleEndian
	le.PutUint64(g.mem[guestGDT+codeSelector:], 0x00cf9b000000ffff)
	le.PutUint64(g.mem[guestGDT+dataSelector:], 0x00cf93000000ffff)
	for v := range 256 {
		stub := uint64(guestStubs + v*16)
		le.PutUint64(g.mem[guestIDT+v*8:], stub&0xffff|codeSelector<<16|0x8e00<<32)
		code := append([]byte{0xb8}, le.AppendUint32(nil, uint32(v))...) // mov eax, v
		copy(g.mem[stub:], append(code, 0xe7, portVector, 0xeb, 0xfe))   // out portVector, eax; jmp $
	}
	var err error
	g.sregs, err = g.cpus[0].Sregs()
	g.must(err)
	g.sregs.CR0 = g.sregs.CR0&^(1<<31) | 1
	g.sregs.GDT = kvm.DTable{Base: guestGDT, Limit: 0x17}
	g.sregs.IDT = kvm.DTable{Base: guestIDT, Limit: 0x7ff}
	flat := kvm.Segment{Limit: 0xffffffff, Selector: dataSelector, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	g.sregs.DS, g.sregs.ES, g.sregs.FS, g.sregs.GS, g.sregs.SS = flat, flat, flat, flat, flat
	g.sregs.CS = flat
	g.sregs.CS.Selector, g.sregs.CS.Type = codeSelector, 11
	g.must(g.cpus[0].SetSregs(&g.sregs))
}

// run executes code and returns EAX in its end, or the vector of an exception or interrupt in
// place of that.
func (g *kvmGuest) run(code ...byte) (eax uint64, vector int) {
	g.t.Helper()
	return g.runWith(interruptsOff, code...)
}

// runWith is run with flags.
func (g *kvmGuest) runWith(flags uint64, code ...byte) (eax uint64, vector int) {
	g.t.Helper()
	copy(g.mem[guestCode:], append(code, 0xe7, portDone, 0xeb, 0xfe))
	v := g.cpus[0]
	g.must(v.SetRegs(&kvm.Regs{RIP: guestCode, RSP: guestStack, RFLAGS: flags}))
	err := v.Run()
	for errors.Is(err, unix.EINTR) { // a signal of Go's own
		err = v.Run()
	}
	g.must(err)
	r := v.Shared()
	if r.ExitReason != kvm.ExitIO {
		g.t.Fatalf("exit %v of code %x", r.ExitReason, code)
	}
	eax = littleEndian(v.IOData())
	port := r.IO().Port
	r.SetImmediateExit(true) // the instruction is completed, and no other
	v.Run()
	r.SetImmediateExit(false)
	switch port {
	case portDone:
		return eax, -1
	case portVector:
		// Without this it is still in the handler, which begins with interrupts off.
		s, err := v.Sregs()
		g.must(err)
		g.sregs.APICBase, g.sregs.CR8 = s.APICBase, s.CR8
		g.must(v.SetSregs(&g.sregs))
		return 0, int(eax)
	}
	g.t.Fatalf("an access of port %#x is not KVM's", port)
	return 0, 0
}

func littleEndian(b []byte) uint64 {
	var x [8]byte
	copy(x[:], b)
	return binary.LittleEndian.Uint64(x[:])
}

// Code for accesses.

func u32(op []byte, args ...uint32) []byte {
	for _, a := range args {
		op = binary.LittleEndian.AppendUint32(op, a)
	}
	return op
}

func (g *kvmGuest) out(port uint16, v byte) {
	g.run(append(u32([]byte{0xba}, uint32(port)), 0xb0, v, 0xee)...) // mov edx, port; mov al, v; out dx, al
}

func (g *kvmGuest) in(port uint16) byte {
	eax, _ := g.run(append(u32([]byte{0xba}, uint32(port)), 0x31, 0xc0, 0xec)...) // xor eax, eax; in al, dx
	return byte(eax)
}

func (g *kvmGuest) write32(gpa, v uint32) { g.run(u32([]byte{0xc7, 0x05}, gpa, v)...) } // mov dword [gpa], v

func (g *kvmGuest) read32(gpa uint32) uint32 {
	eax, _ := g.run(u32([]byte{0xa1}, gpa)...) // mov eax, [gpa]
	return uint32(eax)
}

// wrmsr reports whether there is no #GP.
func (g *kvmGuest) wrmsr(index uint32, v uint64) bool {
	code := u32([]byte{0xb9}, index)                // mov ecx, index
	code = u32(append(code, 0xb8), uint32(v))       // mov eax, low
	code = u32(append(code, 0xba), uint32(v>>32))   // mov edx, high
	_, vector := g.run(append(code, 0x0f, 0x30)...) // wrmsr
	return vector < 0
}

func (g *kvmGuest) rdmsr(index uint32) (uint64, bool) {
	code := append(u32([]byte{0xb9}, index), 0x0f, 0x32) // mov ecx, index; rdmsr
	low, vector := g.run(code...)
	if vector >= 0 {
		return 0, false
	}
	high, _ := g.run(append(code, 0x89, 0xd0)...) // mov eax, edx
	return high<<32 | low, true
}

// interrupt takes one, -1 if there is none.
func (g *kvmGuest) interrupt() int {
	_, vector := g.runWith(interruptsOn, 0x90, 0xfa) // nop; cli
	return vector
}
