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
)

// poker makes KVM drop its shadow of a guest page table. KVM does so when the
// guest writes a single byte into the middle of an entry, so the poker is a
// vCPU of its own, unknown to the guest, that does nothing else: its one
// instruction ORs 0 to a byte. It has its own memory in a hole of the guest's.
type poker struct {
	mu  sync.Mutex
	kvm *kvm.VCPU
	mem []byte
}

const (
	pokeSlot = 30 // a memory slot of its own
	// The pages: root table, its only child, code, and a table of 2 MiB pages
	// for every GiB, which map all addresses to themselves.
	pokePDPT = pokePages + pageSize
	pokeCode = pokePages + 2*pageSize
	pokePD   = pokePages + 3*pageSize
)

// pokeInstruction is "lock or byte ptr [rdi], 0".
var pokeInstruction = []byte{0xf0, 0x80, 0x0f, 0x00}

// newPoker makes the poker for guest memory below limit.
func newPoker(vm *kvm.VM, limit uint64, cpuid []kvm.CPUIDEntry) (_ *poker, err error) {
	p := &poker{}
	gigs := (max(limit, highRAM) + 1<<30 - 1) >> 30 // the code lies below 4 GiB
	size := 3*pageSize + gigs*pageSize
	if p.mem, err = unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, err
	}
	const present, large = 3, 0x83 // present and writable; with the PS bit
	le := binary.LittleEndian
	le.PutUint64(p.mem, pokePDPT|present)
	for i := range gigs {
		le.PutUint64(p.mem[pageSize+8*i:], (pokePD+i*pageSize)|present)
	}
	for i := range gigs * 512 {
		le.PutUint64(p.mem[3*pageSize+8*i:], i<<21|large)
	}
	copy(p.mem[2*pageSize:], pokeInstruction)
	if err = vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{Slot: pokeSlot, GuestPhysAddr: pokePages,
		MemorySize: size, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&p.mem[0])))}); err == nil {
		err = p.create(vm, cpuid)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// pokerID is an APIC ID that no guest CPU has.
const pokerID = 200

func (p *poker) create(vm *kvm.VM, cpuid []kvm.CPUIDEntry) (err error) {
	if p.kvm, err = vm.CreateVCPU(pokerID); err != nil {
		return err
	}
	if err := p.kvm.SetCPUID(cpuid); err != nil { // for pages of 1 GiB
		return err
	}
	s, err := p.kvm.Sregs()
	if err != nil {
		return err
	}
	(&bootloader.Entry{Long: true}).Apply(&s)
	s.CR3 = pokePages
	if err := p.kvm.SetSregs(&s); err != nil {
		return err
	}
	if err := p.kvm.SetMPState(kvm.MPState{State: kvm.MPStateRunnable}); err != nil {
		return err
	}
	return p.kvm.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugSingleStep})
}

func (p *poker) close() error {
	var errs []error
	if p.kvm != nil {
		errs = append(errs, p.kvm.Close())
	}
	return errors.Join(append(errs, unix.Munmap(p.mem))...)
}

// poke makes KVM forget what it knows of the table at gpa. Safe from any
// goroutine.
func (p *poker) poke(gpa uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	run := p.kvm.Shared()
	// Not the first byte of an entry: that, KVM takes for a status bit.
	run.Regs = kvm.Regs{RIP: pokeCode, RDI: gpa + 1, RFLAGS: 2}
	run.DirtyRegs = kvm.SyncRegs
	for {
		err := p.kvm.Run()
		switch {
		case err != nil && interruptedRun(err):
			continue
		case err != nil:
			return err
		case run.ExitReason != kvm.ExitDebug:
			return fmt.Errorf("poke of a page table at %#x: KVM exit %v", gpa, run.ExitReason)
		}
		return nil
	}
}
