package kvm

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLayout holds the request numbers, which carry the structures' sizes,
// to those that a C compiler makes of <linux/kvm.h>.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		r    request
		want uintptr
	}{
		{reqGetAPIVersion, 0xae00}, {reqSetUserMemoryRegion, 0x4020ae46},
		{reqIRQLine, 0x4008ae61}, {reqGetIRQChip, 0xc208ae62}, {reqSetIRQChip, 0x8208ae63},
		{reqSetGSIRouting, 0x4008ae6a}, {reqIRQFD, 0x4020ae76}, {reqCreatePIT2, 0x4040ae77},
		{reqIOEventFD, 0x4040ae79}, {reqSetClock, 0x4030ae7b}, {reqGetPIT2, 0x8070ae9f},
		{reqSignalMSI, 0x4020aea5}, {reqEnableCap, 0x4068aea3}, {reqSetMSRFilter, 0x4188aec6},
		{reqGetDirtyLog, 0x4010ae42}, {reqClearDirtyLog, 0xc018aec0},
		{reqRun, 0xae80}, {reqGetRegs, 0x8090ae81}, {reqGetSregs, 0x8138ae83},
		{reqTranslate, 0xc018ae85}, {reqGetMSRs, 0xc008ae88}, {reqGetFPU, 0x81a0ae8c},
		{reqGetLAPIC, 0x8400ae8e}, {reqSetCPUID2, 0x4008ae90}, {reqGetMPState, 0x8004ae98},
		{reqSetGuestDebug, 0x4048ae9b}, {reqGetVCPUEvents, 0x8040ae9f},
		{reqGetDebugRegs, 0x8080aea1}, {reqGetXSave, 0x9000aea4}, {reqGetXCRs, 0x8188aea6},
		{reqSetSignalMask, 0x4004ae8b}, {reqGetDeviceAttr, 0x4018aee2},
	} {
		if c.r.num != c.want {
			t.Errorf("%s = %#x, want %#x", c.r.name, c.r.num, c.want)
		}
	}
	var r Run
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"exit_reason", unsafe.Offsetof(r.ExitReason), 8},
		{"union", unsafe.Offsetof(r.union), 32},
		{"kvm_valid_regs", unsafe.Offsetof(r.ValidRegs), 288},
		{"s.regs", unsafe.Offsetof(r.Regs), 304},
		{"sizeof kvm_run", unsafe.Sizeof(r), 2352},
	} {
		if c.got != c.want {
			t.Errorf("%s at %d, want %d", c.name, c.got, c.want)
		}
	}
}

func TestErrorNamesIoctl(t *testing.T) {
	_, err := call(-1, reqGetAPIVersion, 0)
	if err == nil || err.Error() != "KVM_GET_API_VERSION: bad file descriptor" || !errors.Is(err, unix.EBADF) {
		t.Errorf("err = %v", err)
	}
}

// TestPermissionHint has a way in for people, and one for machines of CI.
func TestPermissionHint(t *testing.T) {
	for _, c := range []struct {
		group string
		ci    bool
		want  string
	}{{"kvm", false, "usermod -aG kvm "}, {"kvm", true, "99-kvm4all.rules"}, {"", false, "99-kvm4all.rules"}, {"", true, "99-kvm4all.rules"}} {
		if got := permissionHint(c.group, c.ci); !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("group %q, CI %v: %q", c.group, c.ci, got)
		}
	}
}

// TestOpenErrors tells a host without KVM from one that does not let this user in.
func TestOpenErrors(t *testing.T) {
	for errno, want := range map[unix.Errno]error{unix.ENOENT: ErrAbsent, unix.ENODEV: ErrAbsent, unix.ENXIO: ErrAbsent,
		unix.EACCES: ErrDenied, unix.EPERM: ErrDenied, unix.EBUSY: nil} {
		err := &openError{errno, "hint"}
		if !errors.Is(err, errno) {
			t.Errorf("%v is not %v", err, errno)
		}
		for _, e := range []error{ErrAbsent, ErrDenied} {
			if errors.Is(err, e) != (e == want) {
				t.Errorf("%v is %q: %v", err, e, e != want)
			}
		}
	}
}

func TestInstructionBytes(t *testing.T) {
	e := &InternalError{Suberror: InternalErrorEmulation, NData: 4}
	e.Data[0] = 1
	e.Data[1] = 0x9b<<8 | 1
	if b := e.Instruction(); len(b) != 1 || b[0] != 0x9b {
		t.Errorf("Instruction() = %x", b)
	}
	e.Data[1] = 0xff // a count beyond the field
	if b := e.Instruction(); len(b) != 15 {
		t.Errorf("len = %d, want 15", len(b))
	}
}

// openVCPU returns a vCPU in real mode with one page of memory at 0, or skips.
func openVCPU(t *testing.T, code ...byte) (*VM, *VCPU) {
	t.Helper()
	s, err := Open()
	if err != nil {
		t.Skipf("no KVM here: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	if err := vm.SetTSSAddr(0xfffbd000); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	copy(mem, code)
	if err := vm.SetUserMemoryRegion(&UserspaceMemoryRegion{MemorySize: 4096,
		UserspaceAddr: uint64(uintptr(unsafe.Pointer(&mem[0])))}); err != nil {
		t.Fatal(err)
	}
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	sregs, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	if err := v.SetSregs(&sregs); err != nil {
		t.Fatal(err)
	}
	if err := v.SetRegs(&Regs{RFLAGS: 2}); err != nil {
		t.Fatal(err)
	}
	return vm, v
}

func TestRunPortIO(t *testing.T) {
	_, v := openVCPU(t, 0xb0, 0x2a, 0xe6, 0x10, 0xf4) // mov al, 42; out 0x10, al; hlt
	if err := v.Run(); err != nil {
		t.Fatal(err)
	}
	if r := v.Shared(); r.ExitReason != ExitIO || r.IO().Port != 0x10 || r.IO().Direction != IOOut || v.IOData()[0] != 42 {
		t.Errorf("exit %v, io %+v", r.ExitReason, r.IO())
	}
	if err := v.Run(); err != nil || v.Shared().ExitReason != ExitHLT {
		t.Errorf("second run: %v, exit %v", err, v.Shared().ExitReason)
	}
}

func TestImmediateExit(t *testing.T) {
	_, v := openVCPU(t, 0xeb, 0xfe) // jmp $
	v.Shared().SetImmediateExit(true)
	if err := v.Run(); !errors.Is(err, unix.EINTR) {
		t.Errorf("Run = %v, want EINTR", err)
	}
}

// TestCollectorEndsRun: where the guest has been coming back soon, Go's collector gets a guest that
// does not.
func TestCollectorEndsRun(t *testing.T) {
	_, v := openVCPU(t, 0xe6, 0x10, // out 0x10, al
		0xeb, 0xfe) // jmp to itself
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := v.Run(); err != nil || v.run.ExitReason != ExitIO {
		t.Fatalf("%v, exit %v", err, v.run.ExitReason)
	}
	collected := make(chan struct{})
	go func() {
		runtime.GC()
		close(collected)
	}()
	for ended := false; !ended; {
		v.brief = true // a busy host may have taken its time
		if err := v.Run(); !errors.Is(err, unix.EINTR) {
			t.Fatalf("%v, exit %v", err, v.run.ExitReason)
		}
		select {
		case <-collected:
			ended = true
		default:
		}
	}
}

func TestSyncRegs(t *testing.T) {
	_, v := openVCPU(t, 0xe6, 0x10) // out 0x10, al
	r := v.Shared()
	r.ValidRegs = SyncRegs | SyncSregs | SyncEvents
	regs, _ := v.Regs()
	regs.RAX = 0x77
	r.Regs, r.DirtyRegs = regs, SyncRegs
	if err := v.Run(); err != nil {
		t.Fatal(err)
	}
	if r.Regs.RAX != 0x77 || v.IOData()[0] != 0x77 {
		t.Errorf("rax %#x, data %#x", r.Regs.RAX, v.IOData()[0])
	}
}

// TestState reads and writes back every kind of state.
func TestState(t *testing.T) {
	_, v := openVCPU(t)
	area := make([]byte, v.XSaveSize())
	rw := func(name string, err error) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	fpu, err := v.FPU()
	rw("FPU", err)
	rw("SetFPU", v.SetFPU(&fpu))
	ev, err := v.Events()
	rw("Events", err)
	rw("SetEvents", v.SetEvents(&ev))
	dr, err := v.DebugRegs()
	rw("DebugRegs", err)
	rw("SetDebugRegs", v.SetDebugRegs(&dr))
	mp, err := v.MPState()
	rw("MPState", err)
	rw("SetMPState", v.SetMPState(mp))
	rw("XSave", v.XSave(area))
	rw("SetXSave", v.SetXSave(area))
	_, err = v.TSCKHz()
	rw("TSCKHz", err)
	rw("SetMSR", v.SetMSR(0x174, 0x10)) // IA32_SYSENTER_CS
	if m, err := v.MSR(0x174); err != nil || m != 0x10 {
		t.Errorf("MSR 0x174 = %#x, %v", m, err)
	}
	if err := v.SetMSR(0xdeadbeef, 1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetMSR of an unknown MSR: %v", err)
	}
	if err := v.XSave(nil); err == nil {
		t.Error("XSave into nothing succeeded")
	}
}

func TestVMDevices(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Skipf("no KVM here: %v", err)
	}
	defer s.Close()
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	idmap := vm.SetIdentityMapAddr(0xfffbc000)
	for name, err := range map[string]error{
		"SetIdentityMapAddr": idmap,
		"CreateIRQChip":      vm.CreateIRQChip(),
		"CreatePIT2":         vm.CreatePIT2(PITConfig{Flags: PITSpeakerDummy}),
		"IRQLine":            vm.IRQLine(4, false),
		"RefuseMSRs":         vm.RefuseMSRs([]MSRFilterRange{{Base: 0xc0010000, NMSRs: 8}}),
		"SetGSIRouting": vm.SetGSIRouting([]IRQRoutingEntry{
			{GSI: 4, Type: RoutingIRQChip, U: [8]uint32{IRQChipIOAPIC, 4}}}),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := vm.IRQChip(IRQChipIOAPIC); err != nil || vm.SetIRQChip(c) != nil {
		t.Errorf("IRQChip: %v", err)
	}
	if p, err := vm.PIT2(); err != nil || vm.SetPIT2(&p) != nil {
		t.Errorf("PIT2: %v", err)
	}
	if c, err := vm.Clock(); err != nil || c.Clock == 0 {
		t.Errorf("Clock = %+v, %v", c, err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := vm.IRQFD(&IRQFD{FD: uint32(fd), GSI: 4}); err != nil {
		t.Errorf("IRQFD: %v", err)
	}
	if err := vm.IOEventFD(&IOEventFD{Addr: 0xd0000000, Len: 4, FD: int32(fd)}); err != nil {
		t.Errorf("IOEventFD: %v", err)
	}
	if ids, err := s.SupportedCPUID(); err != nil || len(ids) == 0 {
		t.Errorf("SupportedCPUID: %d entries, %v", len(ids), err)
	}
	if l, err := s.MSRIndexList(); err != nil || len(l) == 0 {
		t.Errorf("MSRIndexList: %d, %v", len(l), err)
	}
}

// TestArgumentsStay calls KVM with a structure on a stack that is nearly full, at each depth
// that a new goroutine may be at: were the address a number before the last function on the
// way, that could make the stack larger, and KVM would write to where it was.
func TestArgumentsStay(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Skipf("needs %s: %v", DevicePath, err)
	}
	defer s.Close()
	for frames := range 600 {
		done := make(chan bool)
		go func() {
			ids, err := deep(frames, s.SupportedCPUID)
			done <- err == nil && len(ids) > 0 && ids[len(ids)-1] != CPUIDEntry{}
		}()
		if !<-done {
			t.Fatalf("below %d functions KVM's answer did not arrive", frames)
		}
	}
}

// deep calls f below n functions.
//
//go:noinline
func deep[T any](n int, f func() (T, error)) (T, error) {
	if n == 0 {
		return f()
	}
	return deep(n-1, f)
}

// TestCloseVM: no descriptor is left of a VM, although one was sent away.
func TestCloseVM(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Skipf("no KVM here: %v", err)
	}
	defer s.Close()
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := open()
	for range 3 {
		vm, err := s.CreateVM()
		if err != nil {
			t.Fatal(err)
		}
		if vm.last[0] < 0 {
			t.Error("there is no socket to send it by")
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
}
