package machine

import (
	"fmt"
	"sort"

	"vmm/devices"
)

// PortDevice answers the IN and OUT instructions of a range of ports. offset
// counts from the range's first port; data has 1, 2 or 4 bytes, which a device may not keep.
// Calls come from all vCPUs at once.
type PortDevice interface {
	In(offset uint16, data []byte)
	Out(offset uint16, data []byte)
}

// MMIODevice answers reads and writes of a range of guest-physical addresses;
// offset counts from its start; data has 1 to 8 bytes, which a device may not keep. Calls
// come from all vCPUs at once.
type MMIODevice interface {
	Read(offset uint64, data []byte)
	Write(offset uint64, data []byte)
}

// window is where one device sits on a bus.
type window[D any] struct {
	name       string
	start, end uint64 // the last address is end-1
	device     D
}

// bus finds the device for an address. It is complete before the vCPUs start
// and not changed after.
type bus[D any] struct {
	windows []window[D]
}

// OverlapError is the error for two devices that want the same addresses.
type OverlapError struct {
	New, Old   string // the devices' names
	Start, End uint64 // the new one's first address, and the one after its last
}

// Error implements error.
func (e *OverlapError) Error() string {
	return fmt.Sprintf("%s at %#x-%#x overlaps %s", e.New, e.Start, e.End-1, e.Old)
}

// add registers a device for size addresses from start.
func (b *bus[D]) add(name string, start, size uint64, d D) error {
	end := start + size
	if size == 0 || end < start {
		return fmt.Errorf("%s: no range of %d addresses at %#x", name, size, start)
	}
	i := sort.Search(len(b.windows), func(i int) bool { return b.windows[i].end > start })
	if i < len(b.windows) && b.windows[i].start < end {
		return &OverlapError{name, b.windows[i].name, start, end}
	}
	b.windows = append(b.windows, window[D]{})
	copy(b.windows[i+1:], b.windows[i:])
	b.windows[i] = window[D]{name, start, end, d}
	return nil
}

// find returns the device at an address and the offset in it.
func (b *bus[D]) find(addr uint64) (d D, offset uint64, ok bool) {
	lo, hi := 0, len(b.windows)
	for lo < hi {
		if mid := (lo + hi) / 2; b.windows[mid].end <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(b.windows) || b.windows[lo].start > addr {
		return d, 0, false
	}
	return b.windows[lo].device, addr - b.windows[lo].start, true
}

// portBus is the I/O ports; mmioBus the addresses that are not RAM.
type (
	portBus struct{ bus[PortDevice] }
	mmioBus struct{ bus[MMIODevice] }
)

// access performs one IN or OUT of data at a port; nobody there reads as ones.
func (b *portBus) access(port uint16, data []byte, out bool) {
	d, offset, ok := b.find(uint64(port))
	switch {
	case ok && out:
		d.Out(uint16(offset), data)
	case ok:
		d.In(uint16(offset), data)
	case !out:
		devices.FillOnes(data)
	}
}

// access performs one read or write at a guest-physical address.
func (b *mmioBus) access(addr uint64, data []byte, write bool) {
	d, offset, ok := b.find(addr)
	switch {
	case ok && write:
		d.Write(offset, data)
	case ok:
		d.Read(offset, data)
	case !write:
		devices.FillOnes(data)
	}
}
