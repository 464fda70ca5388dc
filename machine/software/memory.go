package software

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/kvm"
)

const (
	pageSize = 4096
	// maxSlots bounds the slots of a VM.
	maxSlots = 512
)

// slot is a range of guest-physical addresses that has memory.
type slot struct {
	id       uint32
	readOnly bool
	gpa      uint64
	size     uint64 // bytes
	host     unsafe.Pointer
	dirty    []uint64 // a bit a page that was written to; nil if nobody wants to know
}

// memory is the slots of a VM in the order of their addresses. It never changes: another one
// takes its place.
type memory struct{ slots []slot }

func (m *memory) find(gpa uint64) *slot {
	for i := range m.slots {
		if s := &m.slots[i]; gpa-s.gpa < s.size {
			return s
		}
	}
	return nil
}

// page returns the host's address of the page that holds gpa; nil if there is no memory, or
// with write if that is for reading only. It is for who fills a TLB.
func (vm *VM) page(gpa uint64, write bool) unsafe.Pointer {
	s := vm.memory.Load().find(gpa)
	if s == nil || write && s.readOnly {
		return nil
	}
	return unsafe.Add(s.host, (gpa-s.gpa)&^(pageSize-1))
}

// wrote notes that the page that holds gpa can be written to from now on, by who has asked
// for it. It is to be told again after each change of generation.
func (vm *VM) wrote(gpa uint64) {
	s := vm.memory.Load().find(gpa)
	if s == nil || s.dirty == nil {
		return
	}
	n := (gpa - s.gpa) / pageSize
	if word, bit := &s.dirty[n/64], uint64(1)<<(n%64); atomic.LoadUint64(word)&bit == 0 {
		atomic.OrUint64(word, bit)
	}
}

// Page implements ring0.Memory.
func (vm *VM) Page(gpa uint64) *[pageSize]byte { return (*[pageSize]byte)(vm.page(gpa, true)) }

// Mapped implements ring0.Memory.
func (vm *VM) Mapped(gpa uint64, write bool) *[pageSize]byte {
	return (*[pageSize]byte)(vm.page(gpa, write))
}

// WritePage implements ring0.Memory.
func (vm *VM) WritePage(gpa uint64) { vm.wrote(gpa) }

// Wrote implements engine.Writer.
func (vm *VM) Wrote(gpa, n uint64) { vm.tables.Wrote(gpa, n) }

// Size implements ring0.Memory.
func (vm *VM) Size() uint64 {
	slots := vm.memory.Load().slots
	if len(slots) == 0 {
		return 0
	}
	last := &slots[len(slots)-1]
	return last.gpa + last.size
}

// SetUserMemoryRegion implements engine.VM. A slot that is there already can be removed, moved,
// and have its dirty pages logged or not. The error is unix.EINVAL for what is no region, and
// unix.EEXIST for one where there is another.
func (vm *VM) SetUserMemoryRegion(r *kvm.UserspaceMemoryRegion) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	slots := slices.Clone(vm.memory.Load().slots)
	at := slices.IndexFunc(slots, func(s slot) bool { return s.id == r.Slot })
	var old *slot
	if at >= 0 {
		old = &vm.memory.Load().slots[at]
		slots = slices.Delete(slots, at, at+1)
	}
	if r.MemorySize != 0 || old == nil {
		s, err := newSlot(r, old)
		if err == nil && slices.ContainsFunc(slots, s.overlaps) {
			err = unix.EEXIST
		}
		if err == nil && len(slots) == maxSlots {
			err = unix.ENOMEM
		}
		if err != nil {
			return fmt.Errorf("KVM_SET_USER_MEMORY_REGION: slot %d, %#x bytes at %#x: %w", r.Slot, r.MemorySize, r.GuestPhysAddr, err)
		}
		slots = append(slots, s)
	}
	sort.Slice(slots, func(i, j int) bool { return slots[i].gpa < slots[j].gpa })
	vm.memory.Store(&memory{slots})
	vm.flush()
	return nil
}

// newSlot makes a slot of a region, in the place of an old one if that is not nil.
func newSlot(r *kvm.UserspaceMemoryRegion, old *slot) (slot, error) {
	s := slot{id: r.Slot, readOnly: r.Flags&kvm.MemReadonly != 0, gpa: r.GuestPhysAddr, size: r.MemorySize,
		host: *(*unsafe.Pointer)(unsafe.Pointer(&r.UserspaceAddr))} // it is none of Go's memory
	const all = kvm.MemReadonly | kvm.MemLogDirtyPages
	if r.Flags&^uint32(all) != 0 || (r.GuestPhysAddr|r.MemorySize|r.UserspaceAddr)%pageSize != 0 || s.host == nil ||
		s.size == 0 || s.gpa+s.size < s.gpa || r.UserspaceAddr+s.size < r.UserspaceAddr {
		return s, unix.EINVAL
	}
	if old != nil && (s.readOnly != old.readOnly || s.size != old.size || s.host != old.host) {
		return s, unix.EINVAL
	}
	switch {
	case r.Flags&kvm.MemLogDirtyPages == 0:
	case old != nil && old.dirty != nil:
		s.dirty = old.dirty
	default:
		s.dirty = make([]uint64, (s.size/pageSize+63)/64)
	}
	return s, nil
}

func (s *slot) overlaps(other slot) bool {
	return s.gpa < other.gpa+other.size && other.gpa < s.gpa+s.size
}

// DirtyLog implements engine.VM. When it returns, what CPUs have written is in memory for all
// pages that it tells of, and what they write after that is told by the next one. The error
// is unix.ENOENT for a slot that logs nothing, and unix.EINVAL for a bitmap that is too small.
func (vm *VM) DirtyLog(id uint32, bitmap []uint64) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	slots := vm.memory.Load().slots
	at := slices.IndexFunc(slots, func(s slot) bool { return s.id == id && s.dirty != nil })
	if at < 0 {
		return fmt.Errorf("KVM_GET_DIRTY_LOG: slot %d: %w", id, unix.ENOENT)
	}
	dirty := slots[at].dirty
	if len(bitmap) < len(dirty) {
		return fmt.Errorf("KVM_GET_DIRTY_LOG: slot %d: a bitmap for %d pages: %w", id, len(bitmap)*bits.UintSize, unix.EINVAL)
	}
	some := false
	for i := range dirty {
		bitmap[i] = atomic.SwapUint64(&dirty[i], 0)
		some = some || bitmap[i] != 0
	}
	if some { // else no TLB has a page of the slot that can be written to
		vm.flush()
	}
	return nil
}

// flush has all CPUs forget their translations, and returns when none executes with old
// ones. vm.mu is held.
func (vm *VM) flush() {
	vm.generation.Add(1)
	for _, c := range vm.cpus {
		c.Kick()
	}
	vm.executing.Lock()
	defer vm.executing.Unlock()
}
