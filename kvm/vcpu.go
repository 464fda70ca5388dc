package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
)

var (
	reqRun           = io("KVM_RUN", 0x80)
	reqGetRegs       = ior[Regs]("KVM_GET_REGS", 0x81)
	reqSetRegs       = iow[Regs]("KVM_SET_REGS", 0x82)
	reqGetSregs      = ior[Sregs]("KVM_GET_SREGS", 0x83)
	reqSetSregs      = iow[Sregs]("KVM_SET_SREGS", 0x84)
	reqTranslate     = iowr[Translation]("KVM_TRANSLATE", 0x85)
	reqGetMSRs       = iowr[[2]uint32]("KVM_GET_MSRS", 0x88)
	reqSetMSRs       = iow[[2]uint32]("KVM_SET_MSRS", 0x89)
	reqGetFPU        = ior[FPU]("KVM_GET_FPU", 0x8c)
	reqSetFPU        = iow[FPU]("KVM_SET_FPU", 0x8d)
	reqGetLAPIC      = ior[LAPICState]("KVM_GET_LAPIC", 0x8e)
	reqSetLAPIC      = iow[LAPICState]("KVM_SET_LAPIC", 0x8f)
	reqSetCPUID2     = iow[[2]uint32]("KVM_SET_CPUID2", 0x90)
	reqGetCPUID2     = iowr[[2]uint32]("KVM_GET_CPUID2", 0x91)
	reqGetMPState    = ior[MPState]("KVM_GET_MP_STATE", 0x98)
	reqSetMPState    = iow[MPState]("KVM_SET_MP_STATE", 0x99)
	reqNMI           = io("KVM_NMI", 0x9a)
	reqSetGuestDebug = iow[GuestDebug]("KVM_SET_GUEST_DEBUG", 0x9b)
	reqGetVCPUEvents = ior[VCPUEvents]("KVM_GET_VCPU_EVENTS", 0x9f)
	reqSetVCPUEvents = iow[VCPUEvents]("KVM_SET_VCPU_EVENTS", 0xa0)
	reqGetDebugRegs  = ior[DebugRegs]("KVM_GET_DEBUGREGS", 0xa1)
	reqSetDebugRegs  = iow[DebugRegs]("KVM_SET_DEBUGREGS", 0xa2)
	reqSetTSCKHz     = io("KVM_SET_TSC_KHZ", 0xa2)
	reqGetTSCKHz     = io("KVM_GET_TSC_KHZ", 0xa3)
	reqGetXSave      = ior[[4096]byte]("KVM_GET_XSAVE", 0xa4)
	reqSetXSave      = iow[[4096]byte]("KVM_SET_XSAVE", 0xa5)
	reqGetXSave2     = ior[[4096]byte]("KVM_GET_XSAVE2", 0xcf)
	reqGetXCRs       = ior[XCRs]("KVM_GET_XCRS", 0xa6)
	reqSetXCRs       = iow[XCRs]("KVM_SET_XCRS", 0xa7)
	reqKVMClockCtrl  = io("KVM_KVMCLOCK_CTRL", 0xad)
	reqGetNested     = iowr[nestedHeader]("KVM_GET_NESTED_STATE", 0xbe)
	reqSetNested     = iow[nestedHeader]("KVM_SET_NESTED_STATE", 0xbf)
	reqGetDeviceAttr = iow[DeviceAttr]("KVM_GET_DEVICE_ATTR", 0xe2)
)

// VCPU is one virtual processor. All its methods but Shared().SetImmediateExit
// belong to one OS thread.
type VCPU struct {
	fd  int
	mem []byte
	run *Run
	// xsaveSize is the size of the XSAVE area, in bytes.
	xsaveSize int
	// nestedSize is the most that NestedState can be, in bytes; 0 if it cannot be had.
	nestedSize int
	// brief is set while the guest comes back soon: see Run.
	brief bool
}

// CreateVCPU makes a vCPU; id is its APIC ID.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := call(vm.fd, reqCreateVCPU, uintptr(id))
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, vm.sys.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mmap of vCPU %d: %w", id, err)
	}
	v := &VCPU{fd: fd, mem: mem, run: (*Run)(unsafe.Pointer(&mem[0])), xsaveSize: 4096}
	if n, err := vm.CheckExtension(CapXSave2); err == nil && n > v.xsaveSize {
		v.xsaveSize = n
	}
	v.nestedSize, _ = vm.CheckExtension(CapNestedState)
	return v, nil
}

// Close unmaps kvm_run and closes the descriptor.
func (v *VCPU) Close() error {
	return errors.Join(unix.Munmap(v.mem), unix.Close(v.fd))
}

// Shared returns the structure that the vCPU shares with the kernel.
func (v *VCPU) Shared() *Run { return v.run }

// briefRun is a millisecond or less of the CPU's TSC.
const briefRun = 1 << 20

// Run enters the guest until the next exit, which Shared().ExitReason then
// tells. It returns an error that is unix.EINTR after a signal or with
// SetImmediateExit. It allocates nothing but a failure.
//
// Go's scheduler is told that this may block, unless the last time was brief: it takes the
// place of a goroutine that makes system calls all the time every 20 µs, once it has
// done so for 10 ms on end, and its monitor does not sleep meanwhile. What it is not told of
// it ends by a signal after 10 ms, or when the collector wants it, which is an EINTR here.
func (v *VCPU) Run() error {
	enter := unix.Syscall
	if v.brief {
		enter = unix.RawSyscall
	}
	began := x86.RDTSC()
	_, _, errno := enter(unix.SYS_IOCTL, uintptr(v.fd), reqRun.num, 0)
	v.brief = x86.RDTSC()-began < briefRun
	if errno == 0 {
		return nil
	}
	if errno == unix.EINTR {
		return unix.EINTR
	}
	return &Error{reqRun.name, errno}
}

// IOData returns the bytes of an ExitIO, Size*Count of them.
func (v *VCPU) IOData() []byte {
	e := v.run.IO()
	n := uint64(e.Size) * uint64(e.Count)
	if e.DataOffset+n > uint64(len(v.mem)) {
		return nil
	}
	return v.mem[e.DataOffset : e.DataOffset+n]
}

func get[T any](v *VCPU, r request) (T, error) {
	var s T
	_, err := callPtr(v.fd, r, &s)
	return s, err
}

func set[T any](v *VCPU, r request, s *T) error {
	_, err := callPtr(v.fd, r, s)
	return err
}

// Regs reads the general registers.
func (v *VCPU) Regs() (Regs, error) { return get[Regs](v, reqGetRegs) }

// SetRegs writes the general registers.
func (v *VCPU) SetRegs(r *Regs) error { return set(v, reqSetRegs, r) }

// Sregs reads the special registers.
func (v *VCPU) Sregs() (Sregs, error) { return get[Sregs](v, reqGetSregs) }

// SetSregs writes the special registers.
func (v *VCPU) SetSregs(s *Sregs) error { return set(v, reqSetSregs, s) }

// FPU reads the x87 and SSE registers.
func (v *VCPU) FPU() (FPU, error) { return get[FPU](v, reqGetFPU) }

// SetFPU writes the x87 and SSE registers.
func (v *VCPU) SetFPU(f *FPU) error { return set(v, reqSetFPU, f) }

// LAPIC reads the local APIC.
func (v *VCPU) LAPIC() (LAPICState, error) { return get[LAPICState](v, reqGetLAPIC) }

// SetLAPIC writes the local APIC.
func (v *VCPU) SetLAPIC(l *LAPICState) error { return set(v, reqSetLAPIC, l) }

// MPState reads whether the vCPU runs, sleeps or waits for INIT or SIPI.
func (v *VCPU) MPState() (MPState, error) { return get[MPState](v, reqGetMPState) }

// SetMPState writes what MPState reads.
func (v *VCPU) SetMPState(m MPState) error { return set(v, reqSetMPState, &m) }

// Events reads the exceptions and interrupts in flight.
func (v *VCPU) Events() (VCPUEvents, error) { return get[VCPUEvents](v, reqGetVCPUEvents) }

// SetEvents writes what Events reads.
func (v *VCPU) SetEvents(e *VCPUEvents) error { return set(v, reqSetVCPUEvents, e) }

// DebugRegs reads the guest's debug registers.
func (v *VCPU) DebugRegs() (DebugRegs, error) { return get[DebugRegs](v, reqGetDebugRegs) }

// SetDebugRegs writes the guest's debug registers.
func (v *VCPU) SetDebugRegs(d *DebugRegs) error { return set(v, reqSetDebugRegs, d) }

// SetGuestDebug sets the host's breakpoints and single stepping.
func (v *VCPU) SetGuestDebug(d *GuestDebug) error { return set(v, reqSetGuestDebug, d) }

// XCRs reads the extended control registers.
func (v *VCPU) XCRs() (XCRs, error) { return get[XCRs](v, reqGetXCRs) }

// SetXCRs writes the extended control registers.
func (v *VCPU) SetXCRs(x *XCRs) error { return set(v, reqSetXCRs, x) }

// nestedHeader is struct kvm_nested_state without the data behind it.
type nestedHeader struct {
	flags, format uint16
	size          uint32
	_             [120]byte
}

// NestedState reads the state of the guest's own VMs, as KVM has it. The error is
// unix.ENOTTY or unix.EINVAL where the host cannot save it.
func (v *VCPU) NestedState() ([]byte, error) {
	size := v.nestedSize
	if size < int(unsafe.Sizeof(nestedHeader{})) {
		return nil, &Error{reqGetNested.name, unix.ENOTTY}
	}
	b := make([]byte, size)
	h := (*nestedHeader)(unsafe.Pointer(&b[0]))
	h.size = uint32(size)
	if _, err := callPtr(v.fd, reqGetNested, &b[0]); err != nil {
		return nil, err
	}
	return b[:min(int(h.size), size)], nil
}

// SetNestedState writes what NestedState reads.
func (v *VCPU) SetNestedState(b []byte) error {
	if len(b) < int(unsafe.Sizeof(nestedHeader{})) || int((*nestedHeader)(unsafe.Pointer(&b[0])).size) > len(b) {
		return fmt.Errorf("KVM_SET_NESTED_STATE: %d bytes are no state", len(b))
	}
	_, err := callPtr(v.fd, reqSetNested, &b[0])
	return err
}

// Translate walks the guest's page tables for a linear address.
func (v *VCPU) Translate(linear uint64) (Translation, error) {
	t := Translation{LinearAddress: linear}
	_, err := callPtr(v.fd, reqTranslate, &t)
	return t, err
}

// XSaveSize returns the size that XSave needs, in bytes: at least 4096.
func (v *VCPU) XSaveSize() int { return v.xsaveSize }

// XSave reads the extended state into area, in the standard (not compacted)
// format of the CPU's XSAVE. area must have XSaveSize bytes.
func (v *VCPU) XSave(area []byte) error {
	if len(area) < v.xsaveSize {
		return fmt.Errorf("KVM_GET_XSAVE: area of %d bytes, need %d", len(area), v.xsaveSize)
	}
	r := reqGetXSave
	if v.xsaveSize > 4096 {
		r = reqGetXSave2
	}
	_, err := callPtr(v.fd, r, &area[0])
	return err
}

// SetXSave writes what XSave reads.
func (v *VCPU) SetXSave(area []byte) error {
	if len(area) < v.xsaveSize {
		return fmt.Errorf("KVM_SET_XSAVE: area of %d bytes, need %d", len(area), v.xsaveSize)
	}
	_, err := callPtr(v.fd, reqSetXSave, &area[0])
	return err
}

// SetCPUID gives the guest its CPUID leaves.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	c := &cpuid2{}
	if len(entries) > len(c.entries) {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries, at most %d", len(entries), len(c.entries))
	}
	c.nent = uint32(copy(c.entries[:], entries))
	_, err := callPtr(v.fd, reqSetCPUID2, c)
	return err
}

// CPUID returns the leaves that the guest sees.
func (v *VCPU) CPUID() ([]CPUIDEntry, error) { return getCPUID(v.fd, reqGetCPUID2) }

// msrs is struct kvm_msrs with room for one batch.
type msrs struct {
	n       uint32
	_       uint32
	entries [64]MSREntry
}

// MSRs reads len(list) MSRs into the Data of list.
func (v *VCPU) MSRs(list []MSREntry) error { return v.allMSRs(reqGetMSRs, list) }

// SetMSRs writes the MSRs in list.
func (v *VCPU) SetMSRs(list []MSREntry) error { return v.allMSRs(reqSetMSRs, list) }

// SomeMSRs is MSRs up to the first that cannot be read: it returns how many were.
func (v *VCPU) SomeMSRs(list []MSREntry) (int, error) { return v.msrs(reqGetMSRs, list) }

// SetSomeMSRs is SetMSRs up to the first that cannot be written.
func (v *VCPU) SetSomeMSRs(list []MSREntry) (int, error) { return v.msrs(reqSetMSRs, list) }

func (v *VCPU) msrs(r request, list []MSREntry) (total int, err error) {
	for total < len(list) {
		var m msrs
		m.n = uint32(copy(m.entries[:], list[total:]))
		done, err := callPtr(v.fd, r, &m)
		if err != nil {
			return total, err
		}
		copy(list[total:], m.entries[:done])
		if total += done; done < int(m.n) {
			break
		}
	}
	return total, nil
}

func (v *VCPU) allMSRs(r request, list []MSREntry) error {
	n, err := v.msrs(r, list)
	if err == nil && n < len(list) {
		err = fmt.Errorf("%s: MSR %#x: %w", r.name, list[n].Index, unix.EINVAL)
	}
	return err
}

// MSR reads one MSR.
func (v *VCPU) MSR(index uint32) (uint64, error) {
	m := [1]MSREntry{{Index: index}}
	err := v.MSRs(m[:])
	return m[0].Data, err
}

// SetMSR writes one MSR.
func (v *VCPU) SetMSR(index uint32, data uint64) error {
	return v.SetMSRs([]MSREntry{{Index: index, Data: data}})
}

// NMI queues a non-maskable interrupt.
func (v *VCPU) NMI() error {
	_, err := call(v.fd, reqNMI, 0)
	return err
}

// TSCKHz returns the frequency of the guest's TSC in kHz.
func (v *VCPU) TSCKHz() (int, error) { return call(v.fd, reqGetTSCKHz, 0) }

// SetTSCKHz sets the frequency of the guest's TSC in kHz.
func (v *VCPU) SetTSCKHz(khz int) error {
	_, err := call(v.fd, reqSetTSCKHz, uintptr(khz))
	return err
}

// The vCPU's attribute with its TSC's offset ("KVM_VCPU_TSC_CTRL" in the kernel's
// documentation of vCPU devices).
const (
	vcpuTSCCtrl   = 0
	vcpuTSCOffset = 0
)

// TSCOffset returns what KVM adds to the host's TSC for the guest, modulo 1<<64. KVMs
// before Linux 5.16 do not tell.
func (v *VCPU) TSCOffset() (uint64, error) {
	var offset uint64
	var pin runtime.Pinner
	defer pin.Unpin()
	_, err := callPtr(v.fd, reqGetDeviceAttr, &DeviceAttr{Group: vcpuTSCCtrl, Attr: vcpuTSCOffset, Addr: pinned(&pin, &offset)})
	return offset, err
}

// KVMClockCtrl tells the guest that it was paused, so that its watchdogs
// forgive the gap.
func (v *VCPU) KVMClockCtrl() error {
	_, err := call(v.fd, reqKVMClockCtrl, 0)
	return err
}

// SetSignalMask sets the signals that are blocked while the guest runs;
// 1<<(n-1) blocks signal n.
func (v *VCPU) SetSignalMask(blocked uint64) error {
	var m [12]byte // struct kvm_signal_mask: length, then the set
	binary.NativeEndian.PutUint32(m[:], 8)
	binary.NativeEndian.PutUint64(m[4:], blocked)
	_, err := callPtr(v.fd, reqSetSignalMask, &m[0])
	return err
}

var reqSetSignalMask = iow[uint32]("KVM_SET_SIGNAL_MASK", 0x8b)
