package tests

import (
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/kvm"
	"vmm/machine"
)

// debugging is what a debugger has on a host: breakpoints in software and hardware,
// and watchpoints.
type debugging struct{ software, hardware, watch bool }

// hostDebugging finds out what a debugger has here. An emulated CPU may not intercept
// what breakpoints are made of. It asks KVM, not vmm's debugger, which is what is
// tested; only where KVM interprets kernel mode are breakpoints vmm's own work.
func hostDebugging(t *testing.T) debugging {
	t.Helper()
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	speed, err := machine.MeasureSpeed(machine.KVMEngine)
	if err != nil {
		t.Fatal(err)
	}
	if speed.Interpreted {
		return debugging{software: true, hardware: true}
	}
	const hlt, int3, nop = 0xf4, 0xcc, 0x90
	software := stopsForDebugger(t, sys, &kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP}, int3, hlt)
	registers := stopsForDebugger(t, sys, &kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseHWBP,
		DebugReg: [8]uint64{0: 1, 7: 1<<10 | 1<<1}}, nop, nop, hlt) // of the instruction at 1
	return debugging{software: software, hardware: registers, watch: registers}
}

// stopsForDebugger reports whether KVM stops a guest, in flat protected mode without an
// IDT, on the way through code.
func stopsForDebugger(t *testing.T, sys *kvm.System, g *kvm.GuestDebug, code ...byte) bool {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	vm, err := sys.CreateVM()
	check(err)
	defer vm.Close()
	check(vm.SetTSSAddr(0xfffbd000)) // which KVM needs on some of Intel's CPUs
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	check(err)
	defer unix.Munmap(mem)
	copy(mem, code)
	check(vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{MemorySize: 4096, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&mem[0])))}))
	v, err := vm.CreateVCPU(0)
	check(err)
	defer v.Close()
	s, err := v.Sregs()
	check(err)
	flat := kvm.Segment{Limit: 1<<32 - 1, Selector: 8, Type: 11, Present: 1, DB: 1, S: 1, G: 1}
	s.CS = flat
	flat.Selector, flat.Type = 16, 3
	s.DS, s.ES, s.FS, s.GS, s.SS = flat, flat, flat, flat, flat
	s.CR0 |= 1
	s.IDT = kvm.DTable{}
	check(v.SetSregs(&s))
	check(v.SetRegs(&kvm.Regs{RFLAGS: 2}))
	check(v.SetGuestDebug(g))
	for err = v.Run(); errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN); err = v.Run() {
	}
	check(err)
	switch r := v.Shared().ExitReason; r {
	case kvm.ExitDebug:
		return true
	case kvm.ExitShutdown, kvm.ExitHLT:
		return false
	default:
		t.Fatalf("KVM exit %v", r)
		return false
	}
}
