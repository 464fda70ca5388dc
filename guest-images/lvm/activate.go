package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVolumes bounds the volumes that are made devices: each takes memory of the guest, and time to be looked at.
const maxVolumes = 256

// Activate makes read-only devices of the logical volumes on some block devices, with the
// names that they have in /sys/block/*/dm/name. Devices that are no physical volumes are
// passed over; what could not be made is in the error.
func Activate(paths ...string) error {
	devices, texts := map[string]string{}, map[string]bool{}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		p, err := readPhysical(f)
		f.Close()
		if errors.Is(err, ErrNotPV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if devices[p.uuid] == "" { // else it is on a copy of a disk
			devices[p.uuid] = path
		}
		if p.text != "" {
			texts[p.text] = true
		}
	}
	if len(texts) == 0 {
		return nil
	}
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	var errs []error
	made := map[string]bool{}
	for text := range texts {
		list, left, err := volumes(text, func(uuid string) (string, bool) { d, ok := devices[uuid]; return d, ok })
		errs = append(append(errs, left...), err)
		for _, v := range list {
			if made[v.name] {
				continue
			}
			if len(made) == maxVolumes {
				return errors.Join(append(errs, fmt.Errorf("more than %d logical volumes", maxVolumes))...)
			}
			made[v.name] = true
			errs = append(errs, create(control, &v))
		}
	}
	return errors.Join(errs...)
}

// dmIoctl is struct dm_ioctl of <linux/dm-ioctl.h>.
type dmIoctl struct {
	Version     [3]uint32
	DataSize    uint32
	DataStart   uint32
	TargetCount uint32
	OpenCount   int32
	Flags       uint32
	EventNr     uint32
	_           uint32
	Dev         uint64
	Name        [128]byte
	UUID        [129]byte
	Data        [7]byte
}

// From <linux/dm-ioctl.h>.
const (
	dmDevCreate    = 3
	dmDevSuspend   = 6 // which resumes without dmSuspendFlag
	dmTableLoad    = 9
	dmReadonlyFlag = 1 << 0
	dmMagic        = 0xfd
	targetSpec     = 40 // the size of struct dm_target_spec
	targetTypeAt   = 24
)

// create makes the device of a volume.
func create(control *os.File, v *volume) error {
	for _, do := range []func() error{
		func() error { return dm(control, dmDevCreate, v.name, 0, nil) },
		func() error { return dm(control, dmTableLoad, v.name, dmReadonlyFlag, v.table) },
		func() error { return dm(control, dmDevSuspend, v.name, 0, nil) },
	} {
		if err := do(); err != nil {
			return fmt.Errorf("%s: device-mapper: %w", v.name, err)
		}
	}
	return nil
}

// dm does a request of device-mapper.
func dm(control *os.File, number uintptr, name string, flags uint32, table []target) error {
	const head = unsafe.Sizeof(dmIoctl{})
	h := dmIoctl{Version: [3]uint32{4, 0, 0}, DataStart: uint32(head), TargetCount: uint32(len(table)), Flags: flags}
	if copy(h.Name[:len(h.Name)-1], name) < len(name) {
		return unix.ENAMETOOLONG
	}
	var data []byte
	for _, t := range table {
		size := (targetSpec + len(t.params) + 1 + 7) / 8 * 8
		spec := make([]byte, size)
		binary.LittleEndian.PutUint64(spec[0:], t.start)
		binary.LittleEndian.PutUint64(spec[8:], t.length)
		binary.LittleEndian.PutUint32(spec[20:], uint32(size)) // to the next
		copy(spec[targetTypeAt:targetSpec-1], t.kind)
		copy(spec[targetSpec:], t.params)
		data = append(data, spec...)
	}
	// The kernel writes its answer over the request; there is room for a small one.
	buf := make([]byte, max(int(head)+len(data), 4096))
	h.DataSize = uint32(len(buf))
	copy(buf, unsafe.Slice((*byte)(unsafe.Pointer(&h)), head))
	copy(buf[head:], data)
	request := uintptr(3)<<30 | head<<16 | dmMagic<<8 | number
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return errno
	}
	return nil
}
