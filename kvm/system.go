package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// APIVersion is the only version of the KVM API (api.rst, 4.1).
const APIVersion = 12

// DevicePath is where the KVM driver is found.
const DevicePath = "/dev/kvm"

var (
	reqGetAPIVersion    = io("KVM_GET_API_VERSION", 0x00)
	reqCreateVM         = io("KVM_CREATE_VM", 0x01)
	reqGetMSRIndexList  = iowr[uint32]("KVM_GET_MSR_INDEX_LIST", 0x02)
	reqCheckExtension   = io("KVM_CHECK_EXTENSION", 0x03)
	reqGetVCPUMmapSize  = io("KVM_GET_VCPU_MMAP_SIZE", 0x04)
	reqGetSupportedCPID = iowr[[2]uint32]("KVM_GET_SUPPORTED_CPUID", 0x05)
)

// Errors that those of Open are.
var (
	// ErrAbsent: the host has no KVM, that is no /dev/kvm, or one with nothing behind it.
	ErrAbsent = errors.New("no KVM")
	// ErrDenied: it has one, and this user may not open it.
	ErrDenied = errors.New("KVM is not for this user")
)

// openError adds to an error of open(2) on /dev/kvm what its user can do.
type openError struct {
	err  error
	hint string
}

func (e *openError) Error() string { return fmt.Sprintf("%s: %v: %s", DevicePath, e.err, e.hint) }
func (e *openError) Unwrap() error { return e.err }

// Is finds ErrAbsent and ErrDenied. A node without its driver is what udev makes where
// there is a module, also for a CPU that this is not for.
func (e *openError) Is(target error) bool {
	switch target {
	case ErrAbsent:
		return errors.Is(e.err, fs.ErrNotExist) || errors.Is(e.err, unix.ENODEV) || errors.Is(e.err, unix.ENXIO)
	case ErrDenied:
		return errors.Is(e.err, fs.ErrPermission)
	}
	return false
}

// deviceGroup is the name of the group that may open /dev/kvm; "" if none may.
func deviceGroup() string {
	const groupRW = 0o060
	var st unix.Stat_t
	if unix.Stat(DevicePath, &st) == nil && st.Mode&groupRW == groupRW && st.Gid != 0 {
		if g, err := user.LookupGroupId(strconv.FormatUint(uint64(st.Gid), 10)); err == nil {
			return g.Name
		}
	}
	return ""
}

// permissionHint says how to be let in: by the device's group where there is one, and
// else, or where nobody logs in again as in CI, by a rule for everybody.
func permissionHint(group string, ci bool) string {
	if group != "" && !ci {
		return "add yourself to its group: sudo usermod -aG " + group + " $USER, then log in again"
	}
	return `let everybody in: echo 'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"' | ` +
		"sudo tee /etc/udev/rules.d/99-kvm4all.rules && sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm"
}

// System is an open /dev/kvm.
type System struct {
	fd int
	// mmapSize is the size of each vCPU's kvm_run mapping, in bytes.
	mmapSize int
}

// Open opens /dev/kvm and checks its API version. The error says what to do
// where the device is missing or may not be opened.
func Open() (*System, error) {
	fd, err := unix.Open(DevicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &openError{err, "this host offers no KVM; load kvm_intel or kvm_amd, or turn on (nested) virtualization"}
	case errors.Is(err, fs.ErrPermission):
		return nil, &openError{err, permissionHint(deviceGroup(), os.Getenv("CI") != "")}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, &openError{err, "the KVM module is not loaded: sudo modprobe kvm_intel (or kvm_amd)"}
	case errors.Is(err, unix.EBUSY):
		return nil, &openError{err, "another hypervisor has the CPU's virtualization"}
	case err != nil:
		return nil, &openError{err, "cannot be opened"}
	}
	s := &System{fd: fd}
	v, err := call(fd, reqGetAPIVersion, 0)
	if err == nil && v != APIVersion {
		err = fmt.Errorf("%s: API version %d, need %d", DevicePath, v, APIVersion)
	}
	if err == nil {
		s.mmapSize, err = call(fd, reqGetVCPUMmapSize, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

// Close closes the device. VMs made from it live on.
func (s *System) Close() error { return unix.Close(s.fd) }

// CheckExtension returns what KVM_CHECK_EXTENSION says of a capability:
// 0 if it is missing, else 1 or a number that the capability defines.
func (s *System) CheckExtension(c Cap) (int, error) {
	return call(s.fd, reqCheckExtension, uintptr(c))
}

// Has reports whether a capability is there.
func (s *System) Has(c Cap) bool {
	n, err := s.CheckExtension(c)
	return err == nil && n > 0
}

// SupportedCPUID returns the CPUID leaves that this host can give a guest.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(s.fd, reqGetSupportedCPID)
}

// MSRIndexList returns the MSRs that KVM saves and restores on this host.
func (s *System) MSRIndexList() ([]uint32, error) {
	var buf []byte
	for n := uint32(512); ; {
		buf = make([]byte, 4+4*n)
		binary.NativeEndian.PutUint32(buf, n)
		_, err := callPtr(s.fd, reqGetMSRIndexList, &buf[0])
		n = binary.NativeEndian.Uint32(buf)
		if errors.Is(err, unix.E2BIG) && int(4+4*n) > len(buf) {
			continue
		}
		if err != nil {
			return nil, err
		}
		break
	}
	list := make([]uint32, binary.NativeEndian.Uint32(buf))
	for i := range list {
		list[i] = binary.NativeEndian.Uint32(buf[4+4*i:])
	}
	return list, nil
}

// cpuid2 is struct kvm_cpuid2 with room for the most entries that KVM takes
// (KVM_MAX_CPUID_ENTRIES).
type cpuid2 struct {
	nent    uint32
	_       uint32
	entries [256]CPUIDEntry
}

func getCPUID(fd int, r request) ([]CPUIDEntry, error) {
	c := &cpuid2{nent: 256}
	if _, err := callPtr(fd, r, c); err != nil {
		return nil, err
	}
	return append([]CPUIDEntry(nil), c.entries[:c.nent]...), nil
}
