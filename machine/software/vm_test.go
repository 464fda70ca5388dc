package software

import (
	"errors"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
)

func newTestVM(t *testing.T) *VM {
	t.Helper()
	vm, err := newVM(1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(vm.Close(), vm.Close()); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// hostPages is memory of the host's for a slot.
func hostPages(t *testing.T, n int) ([]byte, uint64) {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b, uint64(uintptr(unsafe.Pointer(&b[0])))
}

func TestSlots(t *testing.T) {
	_, at := hostPages(t, 8)
	const page, ro, log = pageSize, kvm.MemReadonly, kvm.MemLogDirtyPages
	region := func(slot, flags uint32, gpa, size, host uint64) *kvm.UserspaceMemoryRegion {
		return &kvm.UserspaceMemoryRegion{Slot: slot, Flags: flags, GuestPhysAddr: gpa, MemorySize: size, UserspaceAddr: host}
	}
	vm := newTestVM(t)
	for _, c := range []struct {
		name string
		r    *kvm.UserspaceMemoryRegion
		want error
	}{
		{"first", region(0, 0, 0, 4*page, at), nil},
		{"second, above a hole", region(1, 0, 16*page, 2*page, at+4*page), nil},
		{"over both", region(2, 0, page, 30*page, at), unix.EEXIST},
		{"over the end", region(2, 0, 3*page, 2*page, at), unix.EEXIST},
		{"between", region(2, ro, 4*page, page, at+6*page), nil},
		{"not aligned", region(3, 0, 100, page, at), unix.EINVAL},
		{"not aligned size", region(3, 0, 32*page, 100, at), unix.EINVAL},
		{"not aligned in the host", region(3, 0, 32*page, page, at+1), unix.EINVAL},
		{"nowhere", region(3, 0, 32*page, page, 0), unix.EINVAL},
		{"around the end", region(3, 0, 1<<64-page, 2*page, at), unix.EINVAL},
		{"unknown flag", region(3, 4, 32*page, page, at), unix.EINVAL},
		{"removing nothing", region(3, 0, 0, 0, 0), unix.EINVAL},
		{"another size", region(1, 0, 16*page, page, at+4*page), unix.EINVAL},
		{"other memory", region(1, 0, 16*page, 2*page, at), unix.EINVAL},
		{"read-only now", region(1, ro, 16*page, 2*page, at+4*page), unix.EINVAL},
		{"logged now", region(1, log, 16*page, 2*page, at+4*page), nil},
		{"moved", region(1, log, 20*page, 2*page, at+4*page), nil},
	} {
		before := vm.generation.Load()
		if err := vm.SetUserMemoryRegion(c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if changed := vm.generation.Load() != before; changed != (c.want == nil) {
			t.Errorf("%s: TLBs are emptied: %v", c.name, changed)
		}
	}
	for _, c := range []struct {
		gpa         uint64
		read, write uint64 // the host's address, 0 for none
	}{
		{0, at, at}, {4*page - 1, at + 3*page, at + 3*page}, {4 * page, at + 6*page, 0}, {5 * page, 0, 0}, {16 * page, 0, 0},
		{20*page + 5, at + 4*page, at + 4*page}, {22 * page, 0, 0}, {1 << 63, 0, 0},
	} {
		if got := uint64(uintptr(vm.page(c.gpa, false))); got != c.read {
			t.Errorf("%#x: %#x, want %#x", c.gpa, got, c.read)
		}
		if got := uint64(uintptr(vm.page(c.gpa, true))); got != c.write {
			t.Errorf("%#x for writing: %#x, want %#x", c.gpa, got, c.write)
		}
	}
	if got := vm.Size(); got != 22*page {
		t.Errorf("size %#x", got)
	}
	if err := vm.SetUserMemoryRegion(region(0, 0, 0, 0, 0)); err != nil || vm.page(0, false) != nil {
		t.Errorf("removing: %v", err)
	}
}

// testCPU writes to pages as a CPU does: through a TLB that it empties when the generation
// has changed.
type testCPU struct {
	vm    *VM
	stop  chan struct{}
	tlb   [4]*uint64
	seen  uint64
	count uint64
}

func (c *testCPU) Kick() {}

func (c *testCPU) run() {
	for {
		select {
		case <-c.stop:
			return
		default:
		}
		c.vm.executing.RLock()
		if g := c.vm.generation.Load(); g != c.seen {
			c.tlb, c.seen = [4]*uint64{}, g
		}
		for range 100 {
			c.count++
			gpa := c.count % 4 * pageSize
			p := &c.tlb[c.count%4]
			if *p == nil {
				c.vm.wrote(gpa)
				*p = (*uint64)(c.vm.page(gpa, true))
			}
			**p = c.count
		}
		c.vm.executing.RUnlock()
	}
}

// TestDirtyLog copies what is told to be dirty while a CPU writes, as a migration does: in
// the end the copy is what the CPU has written.
func TestDirtyLog(t *testing.T) {
	vm := newTestVM(t)
	b, at := hostPages(t, 4)
	if err := vm.DirtyLog(0, make([]uint64, 1)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a log of nothing: %v", err)
	}
	if err := vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{Flags: kvm.MemLogDirtyPages, MemorySize: 4 * pageSize, UserspaceAddr: at}); err != nil {
		t.Fatal(err)
	}
	if err := vm.DirtyLog(0, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a log without room: %v", err)
	}
	cpu := &testCPU{vm: vm, stop: make(chan struct{})}
	vm.add(cpu)
	var done sync.WaitGroup
	done.Go(cpu.run)
	copied := make([]byte, len(b))
	log := make([]uint64, 1)
	take := func() {
		if err := vm.DirtyLog(0, log); err != nil {
			t.Error(err)
		}
		vm.executing.Lock() // the copy must not race with the CPU
		defer vm.executing.Unlock()
		for p := range 4 {
			if log[0]>>p&1 != 0 {
				copy(copied[p*pageSize:][:pageSize], b[p*pageSize:])
			}
		}
	}
	for range 1000 {
		take()
	}
	close(cpu.stop)
	done.Wait()
	take()
	if string(copied) != string(b) {
		t.Error("a write was not told of")
	}
	if take(); log[0] != 0 {
		t.Errorf("%b are dirty without a write", log[0])
	}
}

// newEvent is an eventfd without waiting.
func newEvent(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// counted takes what an eventfd has counted.
func counted(fd int) uint64 {
	var b [8]byte
	if n, err := unix.Read(fd, b[:]); n != 8 || err != nil {
		return 0
	}
	return littleEndian(b[:])
}

func TestIOEventFD(t *testing.T) {
	vm := newTestVM(t)
	a, b := newEvent(t), newEvent(t)
	const match, pio, off = kvm.IOEventFDDatamatch, kvm.IOEventFDPIO, kvm.IOEventFDDeassign
	event := func(fd int, addr uint64, size uint32, value uint64, flags uint32) *kvm.IOEventFD {
		return &kvm.IOEventFD{FD: int32(fd), Addr: addr, Len: size, Datamatch: value, Flags: flags}
	}
	for _, c := range []struct {
		name string
		e    *kvm.IOEventFD
		want error
	}{
		{"a register with a value", event(a, 0xd0000000, 2, 0, match), nil},
		{"the same with another", event(b, 0xd0000000, 2, 1, match), nil},
		{"the same with any", event(b, 0xd0000000, 2, 0, 0), unix.EEXIST},
		{"another size", event(b, 0xd0000000, 4, 0, 0), nil},
		{"any size", event(a, 0xd0000100, 0, 0, 0), nil},
		{"any size with a value", event(a, 0xd0000200, 0, 1, match), unix.EINVAL},
		{"three bytes", event(a, 0xd0000200, 3, 0, 0), unix.EINVAL},
		{"around the end", event(a, 1<<64-2, 4, 0, 0), unix.EINVAL},
		{"a port", event(a, 0x600, 1, 0, pio), nil},
		{"no port", event(a, 0x10000, 1, 0, pio), unix.EINVAL},
		{"no descriptor", event(-1, 0xd0000300, 1, 0, 0), unix.EBADF},
		{"removing nothing", event(a, 0xd0000300, 1, 0, off), unix.ENOENT},
		{"removing another's", event(a, 0xd0000000, 4, 0, off), unix.ENOENT},
		{"unknown flag", event(a, 0xd0000300, 1, 0, 8), unix.EINVAL},
	} {
		if err := vm.IOEventFD(c.e); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, c := range []struct {
		gpa         uint64
		data        []byte
		write, port bool
		a, b        uint64
	}{
		{0xd0000000, []byte{0, 0}, true, false, 1, 0},
		{0xd0000000, []byte{1, 0}, true, false, 0, 1},
		{0xd0000000, []byte{2, 0}, true, false, 0, 0},
		{0xd0000000, []byte{9, 9, 9, 9}, true, false, 0, 1},
		{0xd0000000, []byte{0, 0}, false, false, 0, 0},
		{0xd0000100, []byte{0}, true, false, 1, 0},
		{0x600, []byte{5}, true, true, 1, 0},
		{0x600, []byte{5}, true, false, 0, 0},
	} {
		do := vm.access
		if c.port {
			do = func(gpa uint64, data []byte, write bool) bool { return vm.port(uint16(gpa), data, write) }
		}
		done := do(c.gpa, c.data, c.write)
		gotA, gotB := counted(a), counted(b)
		if gotA != c.a || gotB != c.b || done != (c.a+c.b > 0) {
			t.Errorf("%+v: %v, %d and %d", c, done, gotA, gotB)
		}
	}
	if err := vm.IOEventFD(event(a, 0xd0000000, 2, 0, match|off)); err != nil {
		t.Error(err)
	}
	if vm.access(0xd0000000, []byte{0, 0}, true) {
		t.Error("removed, and signalled")
	}
	if !vm.access(0xfec00000, make([]byte, 4), false) || !vm.port(0x20, make([]byte, 1), false) || vm.port(0x3f8, make([]byte, 1), true) {
		t.Error("the chips' own addresses")
	}
}

func TestIRQFD(t *testing.T) {
	raised := make(chan uint32, 10)
	s, err := newIRQEvents(func(gsi uint32) { raised <- gsi })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	a, b := newEvent(t), newEvent(t)
	for _, c := range []struct {
		name string
		e    kvm.IRQFD
		want error
	}{
		{"first", kvm.IRQFD{FD: uint32(a), GSI: 30}, nil},
		{"second", kvm.IRQFD{FD: uint32(b), GSI: 31}, nil},
		{"twice", kvm.IRQFD{FD: uint32(a), GSI: 32}, unix.EBUSY},
		{"resample", kvm.IRQFD{FD: uint32(a), GSI: 32, Flags: kvm.IRQFDResample}, unix.EINVAL},
		{"no descriptor", kvm.IRQFD{FD: 1 << 30, GSI: 32}, unix.EBADF},
		{"removing another's", kvm.IRQFD{FD: uint32(a), GSI: 31, Flags: kvm.IRQFDDeassign}, unix.ENOENT},
	} {
		if err := s.set(&c.e); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for range 3 {
		unix.Write(b, one)
		if gsi := <-raised; gsi != 31 {
			t.Errorf("GSI %d", gsi)
		}
		unix.Write(a, one)
		if gsi := <-raised; gsi != 30 {
			t.Errorf("GSI %d", gsi)
		}
	}
	if err := s.set(&kvm.IRQFD{FD: uint32(a), GSI: 30, Flags: kvm.IRQFDDeassign}); err != nil {
		t.Fatal(err)
	}
	unix.Write(a, one) // nobody's
	unix.Write(b, one)
	if gsi := <-raised; gsi != 31 {
		t.Errorf("GSI %d", gsi)
	}
	if err := s.set(&kvm.IRQFD{FD: uint32(a), GSI: 33}); err != nil {
		t.Fatal(err)
	}
	if gsi := <-raised; gsi != 33 { // what was counted before counts
		t.Errorf("GSI %d", gsi)
	}
	if err := errors.Join(s.close(), s.close()); err != nil {
		t.Error(err)
	}
	if err := s.set(&kvm.IRQFD{FD: uint32(b), GSI: 31}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("closed: %v", err)
	}
}

// TestSettle: what eventfds have counted is raised when settle returns, whichever goroutine gets
// there first, and none waits for a count that the other has taken.
func TestSettle(t *testing.T) {
	raised := 0
	s, err := newIRQEvents(func(uint32) { raised++ }) // one at a time
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var fds [100]int // more than epoll_wait tells at once
	for i := range fds {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // it waits, as that of a device does
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds[i] = fd
		if err := s.set(&kvm.IRQFD{FD: uint32(fd), GSI: 24}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 1000 {
		for _, fd := range fds {
			unix.Write(fd, one)
		}
		s.settle()
		if s.mu.Lock(); raised != (round+1)*len(fds) {
			t.Fatalf("%d interrupts, want %d", raised, (round+1)*len(fds))
		}
		s.mu.Unlock()
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	s.settle()
}

// TestSavedInterrupt: an interrupt that a device has signalled is in the state of the local APIC.
func TestSavedInterrupt(t *testing.T) {
	vm := newTestVM(t)
	v, err := newVCPU(vm, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	const gsi, vector, svr, irr = 24, 0x41, 0xf0, 0x200
	enabled, err := v.LAPIC()
	if err != nil {
		t.Fatal(err)
	}
	enabled.Regs[svr+1] |= 1 // APIC software enable (SDM 3, 10.9)
	if err := vm.SetGSIRouting([]kvm.IRQRoutingEntry{{GSI: gsi, Type: kvm.RoutingMSI, U: [8]uint32{x86.LAPICBase, 0, vector}}}); err != nil {
		t.Fatal(err)
	}
	event := newEvent(t)
	if err := vm.IRQFD(&kvm.IRQFD{FD: uint32(event), GSI: gsi}); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if err := v.SetLAPIC(&enabled); err != nil {
			t.Fatal(err)
		}
		unix.Write(event, one)
		if l, err := v.LAPIC(); err != nil || l.Regs[irr+vector/32*16+vector%32/8]&(1<<(vector%8)) == 0 {
			t.Fatalf("the interrupt is not there, %v", err)
		}
	}
}

func TestClock(t *testing.T) {
	vm := newTestVM(t)
	if err := vm.SetClock(&kvm.ClockData{Clock: 5_000_000}); err != nil {
		t.Fatal(err)
	}
	r := vm.clock.Load()
	for _, c := range []struct{ tsc, want uint64 }{
		{r.tsc, 5_000_000}, {r.tsc + 1000, 5_001_000}, {r.tsc + 1<<60, 5_000_000 + 1<<60}, {r.tsc - 1, 5_000_000},
	} {
		if got := vm.clockAt(c.tsc); got != c.want {
			t.Errorf("at %d: %d, want %d", c.tsc-r.tsc, got, c.want)
		}
	}
	a, _ := vm.Clock()
	b, _ := vm.Clock()
	if a.Clock < 5_000_000 || b.Clock < a.Clock {
		t.Errorf("%d, then %d", a.Clock, b.Clock)
	}
}

func TestSystem(t *testing.T) {
	s := newSystem()
	defer s.Close()
	for c, want := range map[kvm.Cap]bool{kvm.CapIRQChip: true, kvm.CapTSCDeadlineTimer: true, kvm.CapXCRS: true,
		kvm.CapSyncRegs: false, kvm.CapPMUCapability: false, kvm.CapX86MSRFilter: false, kvm.CapNestedState: false} {
		if s.Has(c) != want {
			t.Errorf("%v: %v", c, !want)
		}
	}
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if _, err := vm.CreateVCPU(-1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("CPU -1: %v", err)
	}
	if _, err := vm.CreateVCPU(1 << 20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a CPU too many: %v", err)
	}
}

// TestMeasureTSC: the measure is one of a counter whose frequency is known.
func TestMeasureTSC(t *testing.T) {
	khz := measureTSC(moment{hostTSC(), time.Now()})
	if khz == 0 {
		t.Error("the counter stands")
	}
}
