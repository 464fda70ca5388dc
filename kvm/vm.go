package kvm

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	reqCreateVCPU          = io("KVM_CREATE_VCPU", 0x41)
	reqGetDirtyLog         = iow[DirtyLog]("KVM_GET_DIRTY_LOG", 0x42)
	reqSetUserMemoryRegion = iow[UserspaceMemoryRegion]("KVM_SET_USER_MEMORY_REGION", 0x46)
	reqSetTSSAddr          = io("KVM_SET_TSS_ADDR", 0x47)
	reqSetIdentityMapAddr  = iow[uint64]("KVM_SET_IDENTITY_MAP_ADDR", 0x48)
	reqCreateIRQChip       = io("KVM_CREATE_IRQCHIP", 0x60)
	reqIRQLine             = iow[IRQLevel]("KVM_IRQ_LINE", 0x61)
	reqGetIRQChip          = iowr[IRQChip]("KVM_GET_IRQCHIP", 0x62)
	reqSetIRQChip          = ior[IRQChip]("KVM_SET_IRQCHIP", 0x63)
	reqSetGSIRouting       = iow[[2]uint32]("KVM_SET_GSI_ROUTING", 0x6a)
	reqIRQFD               = iow[IRQFD]("KVM_IRQFD", 0x76)
	reqCreatePIT2          = iow[PITConfig]("KVM_CREATE_PIT2", 0x77)
	reqIOEventFD           = iow[IOEventFD]("KVM_IOEVENTFD", 0x79)
	reqSetClock            = iow[ClockData]("KVM_SET_CLOCK", 0x7b)
	reqGetClock            = ior[ClockData]("KVM_GET_CLOCK", 0x7c)
	reqGetPIT2             = ior[PITState2]("KVM_GET_PIT2", 0x9f)
	reqSetPIT2             = iow[PITState2]("KVM_SET_PIT2", 0xa0)
	reqEnableCap           = iow[EnableCap]("KVM_ENABLE_CAP", 0xa3)
	reqSignalMSI           = iow[MSI]("KVM_SIGNAL_MSI", 0xa5)
	reqClearDirtyLog       = iowr[ClearDirtyLog]("KVM_CLEAR_DIRTY_LOG", 0xc0)
	reqSetMSRFilter        = iow[MSRFilter]("KVM_X86_SET_MSR_FILTER", 0xc6)
)

// VM is a virtual machine's file descriptor.
type VM struct {
	fd   int
	sys  *System
	last [2]int // two ends of a socket, for Close; -1 if there are none
}

// CreateVM makes an empty virtual machine.
func (s *System) CreateVM() (*VM, error) {
	fd, err := call(s.fd, reqCreateVM, 0)
	if err != nil {
		return nil, err
	}
	vm := &VM{fd: fd, sys: s}
	if vm.last, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		vm.last = [2]int{-1, -1}
	}
	return vm, nil
}

// Close drops the descriptor; the kernel frees the VM when its vCPUs are closed too, or
// some time after.
//
// Who closes a VM last waits in the kernel until nobody can be reading it any more, which
// takes some 20 ms, and so does the end of a process that has one. So a socket is sent to itself,
// together with the VM, and closed: such a one the kernel finds and frees with what was sent,
// since Linux 6.10 in a thread of its own. It is a stream, which can send nowhere else.
func (vm *VM) Close() error {
	unix.Sendmsg(vm.last[0], []byte{0}, unix.UnixRights(vm.last[1], vm.fd), nil, 0) // without it Close just takes longer
	err := unix.Close(vm.fd)
	for _, fd := range vm.last {
		unix.Close(fd)
	}
	return err
}

// CheckExtension is System.CheckExtension for this VM.
func (vm *VM) CheckExtension(c Cap) (int, error) {
	return call(vm.fd, reqCheckExtension, uintptr(c))
}

// EnableCap turns a capability of the VM on.
func (vm *VM) EnableCap(c Cap, args ...uint64) error {
	ec := &EnableCap{Cap: uint32(c)}
	copy(ec.Args[:], args)
	_, err := callPtr(vm.fd, reqEnableCap, ec)
	return err
}

// SetUserMemoryRegion adds, changes or (with size 0) removes a memory slot.
func (vm *VM) SetUserMemoryRegion(r *UserspaceMemoryRegion) error {
	_, err := callPtr(vm.fd, reqSetUserMemoryRegion, r)
	return err
}

// SetTSSAddr gives KVM three pages below 4 GiB for itself (Intel).
func (vm *VM) SetTSSAddr(gpa uint64) error {
	_, err := call(vm.fd, reqSetTSSAddr, uintptr(gpa))
	return err
}

// SetIdentityMapAddr gives KVM one page below 4 GiB for itself (Intel).
func (vm *VM) SetIdentityMapAddr(gpa uint64) error {
	_, err := callPtr(vm.fd, reqSetIdentityMapAddr, &gpa)
	return err
}

// CreateIRQChip makes the in-kernel PICs, IOAPIC and local APICs.
func (vm *VM) CreateIRQChip() error {
	_, err := call(vm.fd, reqCreateIRQChip, 0)
	return err
}

// CreateSplitIRQChip keeps the local APICs in the kernel and leaves PIC and
// IOAPIC to userspace; pins is the number of reserved routes (usually 24).
func (vm *VM) CreateSplitIRQChip(pins int) error {
	return vm.EnableCap(CapSplitIRQChip, uint64(pins))
}

// CreatePIT2 makes the in-kernel i8254.
func (vm *VM) CreatePIT2(c PITConfig) error {
	_, err := callPtr(vm.fd, reqCreatePIT2, &c)
	return err
}

// PIT2 reads the i8254's state.
func (vm *VM) PIT2() (PITState2, error) {
	var s PITState2
	_, err := callPtr(vm.fd, reqGetPIT2, &s)
	return s, err
}

// SetPIT2 writes the i8254's state.
func (vm *VM) SetPIT2(s *PITState2) error {
	_, err := callPtr(vm.fd, reqSetPIT2, s)
	return err
}

// IRQLine drives an interrupt line of the in-kernel irqchip.
func (vm *VM) IRQLine(irq uint32, level bool) error {
	l := IRQLevel{IRQ: irq}
	if level {
		l.Level = 1
	}
	_, err := callPtr(vm.fd, reqIRQLine, &l)
	return err
}

// IRQChip reads the state of one in-kernel chip (IRQChipPICMaster, ...).
func (vm *VM) IRQChip(id uint32) (*IRQChip, error) {
	c := &IRQChip{ChipID: id}
	_, err := callPtr(vm.fd, reqGetIRQChip, c)
	return c, err
}

// SetIRQChip writes the state of one in-kernel chip.
func (vm *VM) SetIRQChip(c *IRQChip) error {
	_, err := callPtr(vm.fd, reqSetIRQChip, c)
	return err
}

// SetGSIRouting replaces the table from GSIs to pins and messages.
func (vm *VM) SetGSIRouting(entries []IRQRoutingEntry) error {
	const header = 8 // nr, flags
	buf := make([]byte, header+len(entries)*int(unsafe.Sizeof(IRQRoutingEntry{})))
	*(*uint32)(unsafe.Pointer(&buf[0])) = uint32(len(entries))
	for i, e := range entries {
		*(*IRQRoutingEntry)(unsafe.Pointer(&buf[header+i*int(unsafe.Sizeof(e))])) = e
	}
	_, err := callPtr(vm.fd, reqSetGSIRouting, &buf[0])
	return err
}

// SignalMSI sends one message-signalled interrupt. It returns false when the
// guest blocked it.
func (vm *VM) SignalMSI(m MSI) (delivered bool, err error) {
	n, err := callPtr(vm.fd, reqSignalMSI, &m)
	return n > 0, err
}

// IRQFD ties an eventfd to a GSI, or unties it.
func (vm *VM) IRQFD(i *IRQFD) error {
	_, err := callPtr(vm.fd, reqIRQFD, i)
	return err
}

// IOEventFD ties a guest address to an eventfd, or unties it.
func (vm *VM) IOEventFD(i *IOEventFD) error {
	_, err := callPtr(vm.fd, reqIOEventFD, i)
	return err
}

// Clock reads the VM's kvmclock.
func (vm *VM) Clock() (ClockData, error) {
	var c ClockData
	_, err := callPtr(vm.fd, reqGetClock, &c)
	return c, err
}

// SetClock sets the VM's kvmclock.
func (vm *VM) SetClock(c *ClockData) error {
	_, err := callPtr(vm.fd, reqSetClock, c)
	return err
}

// DirtyLog fills bitmap, one bit a page from the slot's start, with the pages
// written since the last call. The bitmap must cover the slot.
func (vm *VM) DirtyLog(slot uint32, bitmap []uint64) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	d := DirtyLog{Slot: slot, Bitmap: pinned(&pin, unsafe.SliceData(bitmap))}
	_, err := callPtr(vm.fd, reqGetDirtyLog, &d)
	return err
}

// ClearDirtyLog write-protects again the pages whose bits are set
// (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2). first must be a multiple of 64.
func (vm *VM) ClearDirtyLog(slot uint32, first uint64, pages uint32, bitmap []uint64) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	c := ClearDirtyLog{Slot: slot, FirstPage: first, NumPages: pages, Bitmap: pinned(&pin, unsafe.SliceData(bitmap))}
	_, err := callPtr(vm.fd, reqClearDirtyLog, &c)
	return err
}

// RefuseMSRs makes the guest's accesses to these MSRs faults (#GP). Only Base and
// NMSRs of the ranges count. It replaces an earlier filter; all other MSRs stay with KVM.
func (vm *VM) RefuseMSRs(ranges []MSRFilterRange) error {
	f := &MSRFilter{}
	if len(ranges) > len(f.Ranges) {
		return fmt.Errorf("KVM_X86_SET_MSR_FILTER: %d ranges, at most %d", len(ranges), len(f.Ranges))
	}
	denied := new([8]uint64) // clear bits
	var pin runtime.Pinner
	defer pin.Unpin()
	bitmap := pinned(&pin, denied)
	for i, r := range ranges {
		if r.NMSRs > uint32(8*unsafe.Sizeof(*denied)) {
			return fmt.Errorf("KVM_X86_SET_MSR_FILTER: a range of %d MSRs", r.NMSRs)
		}
		r.Flags, r.Bitmap = MSRFilterRead|MSRFilterWrite, bitmap
		f.Ranges[i] = r
	}
	_, err := callPtr(vm.fd, reqSetMSRFilter, f)
	return err
}
