package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/internal/x86"
	"vmm/kvm"
	"vmm/machine/ring0"
)

// helper is a vCPU that the guest does not know, on interpreting hosts. It
// has two jobs, both with memory of its own in a hole of the guest's:
//
//   - poke: it makes KVM drop its shadow of a guest page table. KVM does so when
//     a single byte in the middle of an entry is written, so the helper ORs 0
//     to one, in kernel mode.
//   - native: it executes a few SSE, AVX or x87 instructions, which KVM does
//     not interpret, in user mode, where they run on the host's CPU. Only their
//     code and their operand are mapped there.
type helper struct {
	mu   sync.Mutex
	kvm  *kvm.VCPU
	mem  []byte
	xcr0 uint64
	user bool // the special registers are those of native
	// wanted reports whether the vCPUs are to stand still, or to end.
	wanted func() bool
}

// helperSlot is a memory slot of its own, helperID an APIC ID that no guest
// CPU has.
const (
	helperSlot = 30
	helperID   = 200
)

// The helper's pages, by number: the tables of kernel mode map all addresses
// to themselves, with a table of 2 MiB pages for every GiB at the end; those
// of user mode map the code and the scratch page.
const (
	hpRoot = iota
	hpPDPT
	hpPoke
	hpUserRoot
	hpUserPDPT
	hpUserPD
	hpUserPT
	hpCode
	hpScratch
	hpPD
)

func hpAddr(page uint64) uint64 { return helperBase + page*pageSize }

// pokeInstruction is "lock or byte ptr [rdi], 0".
var pokeInstruction = []byte{0xf0, 0x80, 0x0f, 0x00}

// nativeEnd leaves user mode behind the code: "mov [nativeExit], al", whose
// page is mapped to an address where nothing is.
var nativeEnd = []byte{0x88, 0x04, 0x25, nativeExit & 0xff, nativeExit >> 8, 0, 0}

const (
	nativeExit = 0x3000
	nativeHole = helperBase - pageSize
)

// newHelper makes the helper's memory, for a guest with RAM below limit; start
// makes its vCPU.
func newHelper(vm *kvm.VM, limit uint64, wanted func() bool) (_ *helper, err error) {
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
	const present, user, large = 3, 7, 0x83 // present and writable; user too; with the PS bit
	set := func(page int, i, v uint64) { binary.LittleEndian.PutUint64(h.page(page)[8*i:], v) }
	set(hpRoot, 0, hpAddr(hpPDPT)|present)
	for i := range gigs {
		set(hpPDPT, i, hpAddr(hpPD+i)|present)
	}
	for i := range gigs * 512 {
		binary.LittleEndian.PutUint64(h.mem[hpPD*pageSize+8*i:], i<<21|large)
	}
	set(hpUserRoot, 0, hpAddr(hpUserPDPT)|user)
	set(hpUserPDPT, 0, hpAddr(hpUserPD)|user)
	set(hpUserPD, 0, hpAddr(hpUserPT)|user)
	set(hpUserPT, ring0.NativeCodeAddr/pageSize, hpAddr(hpCode)|user)
	set(hpUserPT, ring0.NativeScratchAddr/pageSize, hpAddr(hpScratch)|user)
	set(hpUserPT, nativeExit/pageSize, nativeHole|user)
}

// start makes the vCPU.
func (h *helper) start(vm *kvm.VM, cpuid []kvm.CPUIDEntry) (err error) {
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
	if err := h.setMode(false); err != nil {
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

// setMode makes the special registers those of user or kernel mode.
func (h *helper) setMode(user bool) error {
	s, err := h.kvm.Sregs()
	if err != nil {
		return err
	}
	(&bootloader.Entry{Long: true}).Apply(&s)
	s.CR3 = hpAddr(hpRoot)
	if user {
		s.CR3 = hpAddr(hpUserRoot)
		s.CR4 |= x86.CR4OSFXSR | x86.CR4OSXMMEXCPT
		if h.xcr0 != 0 {
			s.CR4 |= x86.CR4OSXSAVE
		}
		toUserMode(&s)
	}
	h.user = user
	return h.kvm.SetSregs(&s)
}

// errAbandoned is returned by a helper that was interrupted because its vCPU is to
// stand still, or to end. Nothing was done then: the guest's instruction comes again.
var errAbandoned = errors.New("the machine stops or pauses")

// run enters the helper and wants it to come back with the reason given. A signal does
// not end it, for what it does should be short, unless somebody waits for the vCPU: the
// guest chooses what the helper executes.
func (h *helper) run(want kvm.ExitReason) error {
	for {
		err := h.kvm.Run()
		switch got := h.kvm.Shared().ExitReason; {
		case err != nil && interruptedRun(err):
			if h.wanted() {
				return errAbandoned
			}
		case err == nil && got != want:
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
	if h.user {
		if err := h.setMode(false); err != nil {
			return err
		}
	}
	run := h.kvm.Shared()
	// Not the first byte of an entry: that, KVM takes for a status bit.
	run.Regs = kvm.Regs{RIP: hpAddr(hpPoke), RDI: gpa + 1, RFLAGS: 2}
	run.DirtyRegs = kvm.SyncRegs
	return h.run(kvm.ExitDebug)
}

// native executes n with the extended state in area, which it updates. Safe
// from any goroutine.
func (h *helper) native(n *ring0.Native, area []byte, xcr0 uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.user || h.xcr0 != xcr0 {
		h.xcr0 = xcr0
		if err := h.setMode(true); err != nil {
			return err
		}
		x := &kvm.XCRs{Count: 1}
		x.XCR[0].Value = xcr0
		if err := h.kvm.SetXCRs(x); err != nil {
			return err
		}
	}
	if err := h.kvm.SetXSave(area); err != nil {
		return err
	}
	code := h.page(hpCode)
	copy(code[copy(code, n.Code[:n.Len]):], nativeEnd)
	copy(h.page(hpScratch), n.Scratch[:])
	run, g := h.kvm.Shared(), &n.GPR
	run.Regs = kvm.Regs{RAX: g[0], RCX: g[1], RDX: g[2], RBX: g[3], RSP: g[4], RBP: g[5], RSI: g[6], RDI: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15],
		RIP: ring0.NativeCodeAddr, RFLAGS: n.Flags | 2}
	run.DirtyRegs = kvm.SyncRegs
	if err := h.run(kvm.ExitMMIO); err != nil {
		return err
	}
	if run.MMIO().PhysAddr != nativeHole {
		return errors.New("the helper vCPU ran away")
	}
	r := &run.Regs
	*g = [16]uint64{r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}
	n.Flags = r.RFLAGS
	copy(n.Scratch[:], h.page(hpScratch))
	if err := h.kvm.XSave(area); err != nil {
		return err
	}
	return h.finish()
}

// finish lets KVM complete the write, so that the next run starts afresh.
func (h *helper) finish() error {
	run := h.kvm.Shared()
	run.SetImmediateExit(true)
	defer run.SetImmediateExit(false)
	if err := h.kvm.Run(); err != nil && !interruptedRun(err) {
		return err
	}
	return nil
}
