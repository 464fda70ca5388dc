package software

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/engine"
)

// realMode makes a machine of n CPUs with 1 MiB of memory, whose first CPU is in front of
// code at 0x1000, in real mode.
func realMode(t *testing.T, n int, code ...byte) (*VM, []byte, []engine.VCPU) {
	t.Helper()
	sys, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	made, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	if err := made.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{MemorySize: uint64(len(mem)), UserspaceAddr: uint64(uintptr(unsafe.Pointer(&mem[0])))}); err != nil {
		t.Fatal(err)
	}
	copy(mem[0x1000:], code)
	var cpus []engine.VCPU
	for id := range n {
		c, err := made.CreateVCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := sys.SupportedCPUID()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetCPUID(ids); err != nil {
			t.Fatal(err)
		}
		cpus = append(cpus, c)
	}
	t.Cleanup(func() {
		for _, c := range cpus {
			c.Close()
		}
		made.Close()
	})
	s, _ := cpus[0].Sregs()
	s.CS.Selector, s.CS.Base = 0, 0
	if err := cpus[0].SetSregs(&s); err != nil {
		t.Fatal(err)
	}
	if err := cpus[0].SetRegs(&kvm.Regs{RIP: 0x1000, RSP: 0x8000, RFLAGS: 2}); err != nil {
		t.Fatal(err)
	}
	return made.(*VM), mem, cpus
}

// until runs a CPU to an exit with a reason.
func until(t *testing.T, c engine.VCPU, want kvm.ExitReason) {
	t.Helper()
	if err := c.Run(); err != nil || c.Shared().ExitReason != want {
		t.Fatalf("%v, %v; want %v", err, c.Shared().ExitReason, want)
	}
}

// TestExits writes and reads ports and memory that nobody in the engine has.
func TestExits(t *testing.T) {
	_, _, cpus := realMode(t, 1,
		0xba, 0x00, 0x06, 0xb0, 0x42, 0xee, // mov dx, 0x600; mov al, 0x42; out dx, al
		0xed,                            // in ax, dx
		0x66, 0x67, 0xa3, 0, 0, 0, 0xd0, // mov [0xd0000000], eax
		0x67, 0x8a, 0x1d, 4, 0, 0, 0xd0, // mov bl, [0xd0000004]
		0x90, 0xf4)
	c := cpus[0]
	until(t, c, kvm.ExitIO)
	if io := c.Shared().IO(); *io != (kvm.IOExit{Direction: kvm.IOOut, Size: 1, Port: 0x600, Count: 1}) || c.IOData()[0] != 0x42 {
		t.Errorf("%+v %x", io, c.IOData())
	}
	until(t, c, kvm.ExitIO)
	if io := c.Shared().IO(); io.Direction != kvm.IOIn || io.Size != 2 {
		t.Errorf("%+v", io)
	}
	binary.LittleEndian.PutUint16(c.IOData(), 0x1234)
	until(t, c, kvm.ExitMMIO)
	if m := c.Shared().MMIO(); m.PhysAddr != 0xd0000000 || m.Len != 4 || m.IsWrite != 1 || m.Data != [8]byte{0x34, 0x12} {
		t.Errorf("%+v", m)
	}
	until(t, c, kvm.ExitMMIO)
	c.Shared().MMIO().Data[0] = 0x99
	// The read is completed where the owner wants the CPU back at once, too.
	c.Shared().SetImmediateExit(true)
	if err := c.Run(); !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
	if r, _ := c.Regs(); r.RBX&0xff != 0x99 || r.RIP != 0x1000+21 {
		t.Errorf("RBX %#x, RIP %#x", r.RBX, r.RIP)
	}
}

// TestSleep has a CPU sleep in HLT until it is kicked, and until an interrupt comes.
func TestSleep(t *testing.T) {
	_, _, cpus := realMode(t, 1, 0xfb, 0xf4) // sti; hlt
	c := cpus[0]
	go func() {
		time.Sleep(10 * time.Millisecond)
		c.Shared().SetImmediateExit(true)
		c.(engine.Kicker).Kick()
	}()
	if err := c.Run(); !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
	if mp, _ := c.MPState(); mp.State != kvm.MPStateHalted {
		t.Errorf("state %d", mp.State)
	}
	c.Shared().SetImmediateExit(false)
	// An NMI ends the sleep; without long mode its delivery shuts the CPU down.
	go func() {
		time.Sleep(10 * time.Millisecond)
		c.(*vcpu).apic.NMI()
	}()
	until(t, c, kvm.ExitShutdown)
}

// TestSecondCPU starts another CPU by INIT and SIPI.
func TestSecondCPU(t *testing.T) {
	_, mem, cpus := realMode(t, 2,
		0x66, 0x67, 0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0, 0, 0, 1, // mov dword [ICR high], 1 << 24
		0x66, 0x67, 0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0, 0x45, 0, 0, // INIT
		0x66, 0x67, 0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 2, 0x46, 0, 0, // SIPI 2
		0xe6, 0x80)
	copy(mem[0x2000:], []byte{0x8c, 0xc8, 0xe7, 0x81}) // mov ax, cs; out 0x81, ax
	ended := make(chan error, 1)
	go func() { ended <- cpus[1].Run() }()
	until(t, cpus[0], kvm.ExitIO)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if io := cpus[1].Shared().IO(); io.Port != 0x81 || binary.LittleEndian.Uint16(cpus[1].IOData()) != 0x200 {
		t.Errorf("%+v %x", io, cpus[1].IOData())
	}
}

// TestStep has the debugger do one instruction at a time, and stop at breakpoints.
func TestStep(t *testing.T) {
	_, _, cpus := realMode(t, 1, 0x90, 0x90, 0xcc, 0x90, 0x90,
		0xa0, 0x08, 0x20, // mov al, [0x2008]
		0xa2, 0x07, 0x20, // mov [0x2007], al
		0xa3, 0x07, 0x20) // mov [0x2007], ax
	c := cpus[0]
	at := func(rip uint64, dr6 uint64) {
		t.Helper()
		until(t, c, kvm.ExitDebug)
		if e := c.Shared().Debug(); e.PC != rip || e.DR6 != dr6 {
			t.Errorf("%+v, want %#x and DR6 %#x", e, rip, dr6)
		}
	}
	c.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugSingleStep})
	at(0x1001, dr6Step)
	c.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP})
	at(0x1002, 0)
	c.SetRegs(&kvm.Regs{RIP: 0x1003, RFLAGS: 2})
	hw := &kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseHWBP}
	hw.DebugReg[1], hw.DebugReg[7] = 0x1004, 1<<3
	c.SetGuestDebug(hw)
	at(0x1004, 1<<1)
	// Watchpoints stop behind the instruction, one of writes not for a read.
	hw.DebugReg[1], hw.DebugReg[2], hw.DebugReg[7] = 0x2008, 0x2006, 1<<3|1<<20|1<<5|3<<24|1<<26
	c.SetGuestDebug(hw)
	at(0x100b, 1<<2)
	at(0x100e, 1<<1)
}

// TestTSCs wants the counters of CPUs that are loaded one after the other to be one.
func TestTSCs(t *testing.T) {
	vm, _, cpus := realMode(t, 2)
	for _, c := range cpus {
		if err := c.SetMSR(x86.MSRTSC, 1<<40); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	a, _ := cpus[0].TSCOffset()
	b, _ := cpus[1].TSCOffset()
	if a != b {
		t.Errorf("offsets %#x and %#x", a, b)
	}
	cpus[1].SetMSR(x86.MSRTSC, 1<<40+5*vm.tscKHz*1000)
	if c, _ := cpus[1].TSCOffset(); c == a {
		t.Error("one that is far off is taken for the same")
	}
}

// TestKVMClock wants kvmclock to make of the TSC what the machine's clock shows.
func TestKVMClock(t *testing.T) {
	vm, mem, cpus := realMode(t, 1)
	vm.SetClock(&kvm.ClockData{Clock: 1e15})
	if err := cpus[0].SetMSR(x86.MSRKVMClock, 0x3000|clockEnabled); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	p := mem[0x3000:]
	if v := le.Uint32(p); v == 0 || v&1 != 0 || p[29]&clockStable == 0 {
		t.Fatalf("% x", p[:32])
	}
	now := hostTSC()
	ticks, shift := now-le.Uint64(p[8:]), int8(p[28])
	if shift >= 0 {
		ticks <<= shift
	} else {
		ticks >>= -shift
	}
	shows := le.Uint64(p[16:]) + ticks*uint64(le.Uint32(p[24:]))>>32
	if is := vm.clockAt(now); shows-is+1000 > 2000 {
		t.Errorf("the guest's clock shows %d, the machine's %d", shows, is)
	}
}

// TestState saves a CPU and makes another what it was.
func TestState(t *testing.T) {
	_, _, cpus := realMode(t, 2, 0xf4)
	a, b := cpus[0], cpus[1]
	want, _ := a.Sregs()
	want.FS.Base, want.CR2, want.GDT.Base = 0x1234, 0x5678, 0x9abc
	area := make([]byte, a.XSaveSize())
	area[160], area[24], area[25] = 7, 0x80, 0x1f // XMM0, MXCSR
	for _, err := range []error{a.SetSregs(&want), a.SetRegs(&kvm.Regs{RAX: 1, R15: 2, RIP: 0x1000, RFLAGS: 0x202}), a.SetXSave(area),
		a.SetMSR(x86.MSRLStar, 0xffffffff81000000), a.SetMSR(x86.MSRKernelGSBase, 77)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	regs, _ := a.Regs()
	sregs, _ := a.Sregs()
	saved := make([]byte, a.XSaveSize())
	a.XSave(saved)
	msrs := make([]kvm.MSREntry, 0, 50)
	for _, i := range savedMSRs() {
		msrs = append(msrs, kvm.MSREntry{Index: i})
	}
	if n, err := a.SomeMSRs(msrs); err != nil || n != len(msrs) {
		t.Fatalf("MSR %#x cannot be read: %v", msrs[n].Index, err)
	}
	if n, err := b.SetSomeMSRs(msrs); err != nil || n != len(msrs) {
		t.Fatalf("MSR %#x cannot be written: %v", msrs[n].Index, err)
	}
	for _, err := range []error{b.SetSregs(&sregs), b.SetRegs(&regs), b.SetXSave(saved)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	gotRegs, _ := b.Regs()
	gotSregs, _ := b.Sregs()
	got := make([]byte, b.XSaveSize())
	b.XSave(got)
	lstar, _ := b.MSR(x86.MSRLStar)
	gs, _ := b.MSR(x86.MSRKernelGSBase)
	if gotRegs != regs || gotSregs != sregs || string(got) != string(saved) || lstar != 0xffffffff81000000 || gs != 77 || gotSregs.FS.Base != 0x1234 {
		t.Errorf("%+v\n%+v\n%+v", gotRegs, gotSregs, lstar)
	}
}
