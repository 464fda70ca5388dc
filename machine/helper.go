package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/kvm"
	"vmm/machine/engine"
)

// helper is a vCPU that the guest does not know, on interpreting hosts, with memory
// of its own in a hole of the guest's. It makes KVM drop its shadow of a guest page
// table: KVM does so when a single byte in the middle of an entry is written, so the
// helper ORs 0 to one, in kernel mode.
type helper struct {
	mu  sync.Mutex
	kvm engine.VCPU
	mem []byte
	// wanted reports whether the vCPUs are to stand still, or to end.
	wanted func() bool
}

// helperSlot is a memory slot of its own, helperID an APIC ID that no guest
// CPU has.
const (
	helperSlot = 30
	helperID   = 200
)

// The helper's pages, by number: the code, and tables that map all addresses to
// themselves, with one of 2 MiB pages for every GiB at the end.
const (
	hpRoot = iota
	hpPDPT
	hpPoke
	hpPD
)

func hpAddr(page uint64) uint64 { return helperBase + page*pageSize }

// pokeInstruction is "lock or byte ptr [rdi], 0".
var pokeInstruction = []byte{0xf0, 0x80, 0x0f, 0x00}

// newHelper makes the helper's memory, for a guest with RAM below limit; start
// makes its vCPU.
func newHelper(vm engine.VM, limit uint64, wanted func() bool) (_ *helper, err error) {
	h := &helper{wanted: wanted}
	gigs := (max(limit, highRAM) + 1<<30 - 1) >> 30 // the helper's code lies below 4 GiB
	size := (hpPD + gigs) * pageSize
	if h.mem, err = unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, err
	}
	h.fillTables(gigs)
	copy(h.page(hpPoke), pokeInstruction)
	if err = vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{Slot: helperSlot, GuestPhysAddr: helperBase,
		MemorySize: size, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&h.mem[0])))}); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *helper) page(n int) []byte { return h.mem[n*pageSize : (n+1)*pageSize] }

func (h *helper) fillTables(gigs uint64) {
	const present, large = 3, 0x83 // present and writable; with the PS bit
	set := func(page int, i, v uint64) { binary.LittleEndian.PutUint64(h.page(page)[8*i:], v) }
	set(hpRoot, 0, hpAddr(hpPDPT)|present)
	for i := range gigs {
		set(hpPDPT, i, hpAddr(hpPD+i)|present)
	}
	for i := range gigs * 512 {
		binary.LittleEndian.PutUint64(h.mem[hpPD*pageSize+8*i:], i<<21|large)
	}
}

// start makes the vCPU.
func (h *helper) start(vm engine.VM, cpuid []kvm.CPUIDEntry) (err error) {
	if h.kvm, err = vm.CreateVCPU(helperID); err != nil {
		return err
	}
	if err := h.kvm.SetCPUID(cpuid); err != nil {
		return err
	}
	if err := h.kvm.SetMPState(kvm.MPState{State: kvm.MPStateRunnable}); err != nil {
		return err
	}
	h.kvm.Shared().ValidRegs = kvm.SyncRegs
	s, err := h.kvm.Sregs()
	if err != nil {
		return err
	}
	(&bootloader.Entry{Long: true}).Apply(&s)
	s.CR3 = hpAddr(hpRoot)
	if err := h.kvm.SetSregs(&s); err != nil {
		return err
	}
	return h.kvm.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugSingleStep})
}

func (h *helper) close() error {
	var errs []error
	if h.kvm != nil {
		errs = append(errs, h.kvm.Close())
	}
	return errors.Join(append(errs, unix.Munmap(h.mem))...)
}

// errAbandoned is returned by a helper that was interrupted because its vCPU is to
// stand still, or to end. Nothing was done then: the guest's instruction comes again.
var errAbandoned = errors.New("the machine stops or pauses")

// run has the helper execute one instruction. A signal does not end it, for that should
// be short, unless somebody waits for the vCPU.
func (h *helper) run() error {
	for {
		err := h.kvm.Run()
		switch got := h.kvm.Shared().ExitReason; {
		case err != nil && interruptedRun(err):
			if h.wanted() {
				return errAbandoned
			}
		case err == nil && got != kvm.ExitDebug:
			return fmt.Errorf("the helper vCPU ended with KVM exit %v", got)
		default:
			return err
		}
	}
}

// poke makes KVM forget what it knows of the table at gpa. Safe from any
// goroutine.
func (h *helper) poke(gpa uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	run := h.kvm.Shared()
	// Not the first byte of an entry: that, KVM takes for a status bit.
	run.Regs = kvm.Regs{RIP: hpAddr(hpPoke), RDI: gpa + 1, RFLAGS: 2}
	run.DirtyRegs = kvm.SyncRegs
	return h.run()
}
