package net

import (
	"encoding/binary"
	"slices"
	"sync/atomic"

	"vmm/internal/iovec"
	"vmm/network/ether"
	"vmm/virtio"
)

// Classes and commands of the control queue (5.1.6.5).
const (
	classRX       = 0
	rxPromiscuous = 0
	rxAllMulti    = 1

	classMAC    = 1
	macTableSet = 0
	macAddrSet  = 1

	classAnnounce = 3
	announceAck   = 0

	classMQ     = 4
	mqPairsSet  = 0
	classGuest  = 5 // VIRTIO_NET_CTRL_GUEST_OFFLOADS
	offloadsSet = 0

	ackOK  = 0
	ackErr = 1

	// maxTable bounds the addresses that are filtered for; with more, all pass.
	maxTable = 64
	// maxCommand bounds a command: class, number, and two tables.
	maxCommand = 2 + 2*(4+6*1024)
)

// filterState is which frames the guest wants to see.
type filterState struct {
	mac                   ether.MAC
	promiscuous, allMulti bool
	table                 []ether.MAC // further addresses, of one device and of groups
}

// filter is a filterState that is changed while frames are held against it.
type filter struct{ state atomic.Pointer[filterState] }

func (f *filter) set(s filterState) { f.state.Store(&s) }
func (f *filter) get() filterState  { return *f.state.Load() }

// accepts reports whether the guest wants a frame.
func (f *filter) accepts(parts [][]byte) bool {
	s := f.state.Load()
	if s.promiscuous {
		return true
	}
	var to ether.MAC
	iovec.Gather(to[:], parts)
	return to == s.mac || to == ether.Broadcast || s.allMulti && to.Multicast() || slices.Contains(s.table, to)
}

// handleControl obeys the driver's commands.
func (d *Device) handleControl(q *virtio.Queue) error {
	defer q.Notify()
	var c virtio.Chain
	for {
		ok, err := q.Pop(&c)
		if err != nil || !ok {
			return err
		}
		if len(c.Writable) == 0 {
			return virtio.ErrMalformed
		}
		ack := byte(ackErr)
		if n := iovec.Len(c.Readable); n >= 2 && n <= maxCommand {
			b := make([]byte, n)
			iovec.Gather(b, c.Readable)
			if d.command(b[0], b[1], b[2:]) {
				ack = ackOK
			}
		}
		c.Writable[0][0] = ack
		q.Push(&c, 1)
	}
}

// command does one command; false if it is unknown or wrong.
func (d *Device) command(class, number byte, data []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.filter.get()
	switch {
	case class == classRX && (number == rxPromiscuous || number == rxAllMulti) && len(data) == 1:
		if number == rxPromiscuous {
			s.promiscuous = data[0] != 0
		} else {
			s.allMulti = data[0] != 0
		}
	case class == classMAC && number == macTableSet:
		if !s.setTable(data) {
			return false
		}
	case class == classMAC && number == macAddrSet && len(data) == len(s.mac):
		copy(s.mac[:], data)
	case class == classAnnounce && number == announceAck:
		d.status.And(^uint32(statusAnnounce))
		return true
	case class == classMQ && number == mqPairsSet && len(data) == 2:
		n := binary.LittleEndian.Uint16(data)
		if n == 0 || int(n) > d.opts.Pairs {
			return false
		}
		d.pairs.Store(int32(n))
		return true
	case class == classGuest && number == offloadsSet && len(data) == 8:
		want := binary.LittleEndian.Uint64(data)
		if want&^guestOffloads != 0 {
			return false
		}
		f := d.features.Load()&^guestOffloads | want
		d.features.Store(f)
		d.link.Offloads(offloads(f))
		return true
	default:
		return false
	}
	d.filter.set(s)
	return true
}

// setTable reads struct virtio_net_ctrl_mac twice: addresses of devices, then
// of groups.
func (s *filterState) setTable(data []byte) bool {
	var table []ether.MAC
	for range 2 {
		if len(data) < 4 {
			return false
		}
		n := uint64(binary.LittleEndian.Uint32(data))
		if data = data[4:]; n > uint64(len(data)/6) {
			return false
		}
		for ; n > 0; n-- {
			table = append(table, ether.MAC(data[:6]))
			data = data[6:]
		}
	}
	if s.table = table; len(table) > maxTable {
		s.table, s.promiscuous = nil, true
	}
	return true
}
