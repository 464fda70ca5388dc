// Package virtiotest plays the guest for tests and benchmarks of virtio
// devices: memory, a driver of the PCI transport, and the driver's side of
// split virtqueues, without a VM.
package virtiotest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/devices"
	"vmm/virtio"
)

// Memory is guest RAM from address 0, in a file that other processes can map.
type Memory struct {
	FD    int
	Bytes []byte
}

// NewMemory makes memory of size bytes.
func NewMemory(size int) (*Memory, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Memory{fd, b}, nil
}

// Close frees the memory.
func (m *Memory) Close() error { return errors.Join(unix.Munmap(m.Bytes), unix.Close(m.FD)) }

// errNotRAM keeps Slice from allocating.
var errNotRAM = errors.New("not RAM")

// Slice implements virtio.Memory.
func (m *Memory) Slice(gpa, n uint64) ([]byte, error) {
	if gpa > uint64(len(m.Bytes)) || n > uint64(len(m.Bytes))-gpa {
		return nil, errNotRAM
	}
	return m.Bytes[gpa : gpa+n : gpa+n], nil
}

// ReadSlice implements virtio.Memory.
func (m *Memory) ReadSlice(gpa, n uint64) ([]byte, error) { return m.Slice(gpa, n) }

// MarkDirty implements virtio.Memory.
func (m *Memory) MarkDirty([]byte) {}

// Guest drives one device through its PCI transport.
type Guest struct {
	Mem    *Memory
	PCI    *virtio.PCI
	Queues []*Driver

	mu    sync.Mutex
	kicks map[uint64]int // the device's eventfds by address
	errs  []error
}

const (
	command    = 0x04
	barBase    = 0x10000
	msixTable  = 0x4000
	notifyArea = 0x3000
	// The first byte of common configuration's registers.
	regFeatureSel = 0x00
	regFeature    = 0x04
	regDriverSel  = 0x08
	regDriver     = 0x0c
	regStatus     = 0x14
	regQueueSel   = 0x16
	regQueueSize  = 0x18
	regVector     = 0x1a
	regEnable     = 0x1c
	regDesc       = 0x20

	statusOK         = 1 | 2 | 8 | 4
	statusFeatures   = 1 | 2 | 8
	statusNeedsReset = 64
)

// vector is one message-signalled interrupt, which ends in an event.
type vector struct {
	g     *Guest
	event *virtio.Event
}

// Route implements devices.MSI: the data is the queue's number.
func (v *vector) Route(_ uint64, data uint32) error {
	if int(data) < len(v.g.Queues) {
		v.event = v.g.Queues[data].Call
	}
	return nil
}

// Signal implements devices.MSI.
func (v *vector) Signal() {
	if v.event != nil {
		v.event.Signal()
	}
}

// Close implements devices.MSI.
func (v *vector) Close() error { return nil }

// NewMSI implements virtio.Host.
func (g *Guest) NewMSI() (devices.MSI, error) { return &vector{g: g}, nil }

// SetIOEvent implements virtio.Host.
func (g *Guest) SetIOEvent(e virtio.IOEvent, fd int, on bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if on {
		g.kicks[e.Address] = fd
	} else {
		delete(g.kicks, e.Address)
	}
	return nil
}

// pin is an interrupt pin that is not connected.
type pin struct{}

// Set implements devices.IRQ.
func (pin) Set(bool) {}

// Start makes a guest for a device with queues of n descriptors, where it allows as many, and has it
// take all features but those in without. Queue i lies at i*queueSpace.
func Start(dev virtio.Device, mem *Memory, n uint16, without uint64) (*Guest, error) {
	g := &Guest{Mem: mem, kicks: map[uint64]int{}}
	g.PCI = virtio.NewPCI(dev, mem, g, g.note)
	g.PCI.Place(barBase, 0, pin{})
	g.PCI.ConfigWrite(command, []byte{6, 0})
	features := uint64(0)
	for sel := range uint32(2) {
		g.write(regFeatureSel, 4, uint64(sel))
		features |= g.read(regFeature, 4) << (32 * sel)
	}
	features &^= without
	for sel := range uint32(2) {
		g.write(regDriverSel, 4, uint64(sel))
		g.write(regDriver, 4, features>>(32*sel)&0xffffffff)
	}
	g.write(regStatus, 1, statusFeatures)
	if g.read(regStatus, 1)&statusFeatures != statusFeatures {
		return nil, fmt.Errorf("the device refused features %#x", features)
	}
	for i, most := range dev.QueueSizes() {
		d, err := newDriver(mem, uint64(i)*queueSpace, min(n, most), features)
		if err != nil {
			return nil, err
		}
		g.Queues = append(g.Queues, d)
	}
	for i, d := range g.Queues {
		g.enable(i, d)
	}
	g.enableMSIX()
	g.write(regStatus, 1, statusOK)
	g.ConnectKicks()
	return g, nil
}

// Move gives the guest another device, which goes on where the one was that it has,
// as a restored machine's does.
func (g *Guest) Move(dev virtio.Device) error {
	g.PCI.Suspend()
	s, err := g.PCI.Save()
	if err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := g.PCI.Close(); err != nil {
		return err
	}
	var saved virtio.State
	if err := json.Unmarshal(b, &saved); err != nil {
		return err
	}
	g.PCI = virtio.NewPCI(dev, g.Mem, g, g.note)
	g.PCI.Place(barBase, 0, pin{})
	if err := g.PCI.Load(&saved); err != nil {
		return err
	}
	g.PCI.Resume()
	g.ConnectKicks()
	return nil
}

// note keeps what the driver did wrong.
func (g *Guest) note(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errs = append(g.errs, err)
}

// ConnectKicks finds the events of the queues, which are others after each time that
// the device was suspended.
func (g *Guest) ConnectKicks() {
	for i, d := range g.Queues {
		d.kick = g.kicks[barBase+notifyArea+4*uint64(i)]
	}
}

func (g *Guest) enable(i int, d *Driver) {
	g.write(regQueueSel, 2, uint64(i))
	g.write(regQueueSize, 2, uint64(d.Layout.Size))
	g.write(regVector, 2, uint64(i))
	for k, a := range []uint64{d.Layout.Desc, d.Layout.Avail, d.Layout.Used} {
		g.write(regDesc+8*uint64(k), 4, a&0xffffffff)
		g.write(regDesc+8*uint64(k)+4, 4, a>>32)
	}
	g.write(regEnable, 2, 1)
	var entry [16]byte
	binary.LittleEndian.PutUint32(entry[8:], uint32(i))
	g.PCI.BARWrite(msixTable+16*uint64(i), entry[:])
}

// enableMSIX finds the capability and sets its enable bit.
func (g *Guest) enableMSIX() {
	var at [1]byte
	g.PCI.ConfigRead(0x34, at[:])
	for at[0] != 0 {
		var c [2]byte
		g.PCI.ConfigRead(uint16(at[0]), c[:])
		if c[0] == devices.MSIXCapability {
			g.PCI.ConfigWrite(uint16(at[0])+2, []byte{0, 0x80})
		}
		at[0] = c[1]
	}
}

func (g *Guest) read(reg uint64, n int) uint64 {
	var b [8]byte
	g.PCI.BARRead(reg, b[:n])
	return binary.LittleEndian.Uint64(b[:])
}

func (g *Guest) write(reg uint64, n int, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	g.PCI.BARWrite(reg, b[:n])
}

// NeedsReset reports whether the device has given up.
func (g *Guest) NeedsReset() bool { return g.read(regStatus, 1)&statusNeedsReset != 0 }

// Reset resets the device.
func (g *Guest) Reset() { g.write(regStatus, 1, 0) }

// Errors are what the device had to say.
func (g *Guest) Errors() []error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]error(nil), g.errs...)
}

// Close closes the device and the queues.
func (g *Guest) Close() error {
	err := g.PCI.Close()
	for _, d := range g.Queues {
		err = errors.Join(err, d.Call.Close())
	}
	return err
}

// queueSpace is the memory of one queue's areas; QueueEnd is where the memory
// of n queues ends.
const queueSpace = 1 << 18

// QueueEnd is the first address beyond n queues.
func QueueEnd(n int) uint64 { return uint64(n) * queueSpace }

// Buffer is a part of a chain.
type Buffer struct {
	Addr  uint64
	Len   uint32
	Write bool // by the device
}

// Driver is the driver's side of a virtqueue. It serves one goroutine.
type Driver struct {
	Layout virtio.Layout
	Call   *virtio.Event // the device's interrupt

	mem      *Memory
	kick     int
	eventIdx bool
	free     []uint16 // heads of descriptors
	used     []uint16 // descriptors of the chain, by head
	avail    uint16   // index that is published next
	seen     uint16   // of the used ring
}

func newDriver(mem *Memory, base uint64, n uint16, features uint64) (*Driver, error) {
	call, err := virtio.NewEvent()
	if err != nil {
		return nil, err
	}
	d := &Driver{mem: mem, Call: call, eventIdx: features&virtio.FeatureEventIdx != 0, used: make([]uint16, n),
		Layout: virtio.Layout{Size: n, Desc: base, Avail: base + queueSpace/2, Used: base + queueSpace*3/4}}
	clear(mem.Bytes[base : base+queueSpace])
	for i := range n {
		d.free = append(d.free, n-1-i)
	}
	return d, nil
}

// NewDriver returns the driver of a queue at base, for devices that are not
// driven by Start; kick is the eventfd by which the device is notified.
func NewDriver(mem *Memory, base uint64, n uint16, features uint64, kick int) (*Driver, error) {
	d, err := newDriver(mem, base, n, features)
	if err == nil {
		d.kick = kick
	}
	return d, err
}

func (d *Driver) at(gpa uint64) unsafe.Pointer { return unsafe.Pointer(&d.mem.Bytes[gpa]) }

// word accesses 32 bits of a ring at once: flags and index.
func (d *Driver) word(gpa uint64) *uint32 { return (*uint32)(d.at(gpa)) }

// Put writes a descriptor as it is, for those that break the rules.
func (d *Driver) Put(i uint16, addr uint64, size uint32, flags, next uint16) {
	b := d.mem.Bytes[d.Layout.Desc+16*uint64(i):]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], size)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// Add makes a chain available, without a kick, and returns its head; ok is
// false while there are too few descriptors.
func (d *Driver) Add(chain ...Buffer) (head uint16, ok bool) {
	if len(chain) > len(d.free) {
		return 0, false
	}
	at := len(d.free) - len(chain)
	own := d.free[at:]
	for k, b := range chain {
		flags, next := uint16(0), uint16(0)
		if b.Write {
			flags |= 2
		}
		if k+1 < len(chain) {
			flags, next = flags|1, own[k+1]
		}
		d.Put(own[k], b.Addr, b.Len, flags, next)
	}
	head = own[0]
	d.used[head] = uint16(len(chain))
	d.free = d.free[:at]
	d.Publish(head)
	return head, true
}

// Publish makes the chain that begins at a descriptor available.
func (d *Driver) Publish(head uint16) {
	slot := d.Layout.Avail + 4 + 2*uint64(d.avail&(d.Layout.Size-1))
	binary.LittleEndian.PutUint16(d.mem.Bytes[slot:], head)
	d.avail++
	atomic.StoreUint32(d.word(d.Layout.Avail), uint32(d.avail)<<16)
}

// Kick notifies the device of what was added since from, unless it does not
// want that.
func (d *Driver) Kick(from uint16) {
	if d.eventIdx {
		event := uint16(atomic.LoadUint32(d.word(d.Layout.Used + 4 + 8*uint64(d.Layout.Size))))
		if d.avail-event-1 >= d.avail-from {
			return
		}
	} else if atomic.LoadUint32(d.word(d.Layout.Used))&1 != 0 {
		return
	}
	var one = [8]byte{1}
	unix.Write(d.kick, one[:])
}

// Added is the index by which Kick is told what is new.
func (d *Driver) Added() uint16 { return d.avail }

// Next returns a chain that the device has used.
func (d *Driver) Next() (head uint16, n uint32, ok bool) {
	idx := uint16(atomic.LoadUint32(d.word(d.Layout.Used)) >> 16)
	if idx == d.seen {
		return 0, 0, false
	}
	e := d.mem.Bytes[d.Layout.Used+4+8*uint64(d.seen&(d.Layout.Size-1)):]
	head, n = uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:])
	d.seen++
	d.release(head)
	return head, n, true
}

// release gives the descriptors of a chain back.
func (d *Driver) release(head uint16) {
	for k, i := d.used[head], head; k > 0; k-- {
		d.free = append(d.free, i)
		i = binary.LittleEndian.Uint16(d.mem.Bytes[d.Layout.Desc+16*uint64(i)+14:])
	}
}

// Wait blocks until a chain is there, and asks for an interrupt meanwhile.
func (d *Driver) Wait() (head uint16, n uint32) {
	for {
		if head, n, ok := d.WaitFor(time.Hour); ok {
			return head, n
		}
	}
}

// WaitFor is Wait for a while; false is its end.
func (d *Driver) WaitFor(timeout time.Duration) (head uint16, n uint32, ok bool) {
	for deadline := time.Now().Add(timeout); ; {
		if head, n, ok := d.Next(); ok {
			return head, n, true
		}
		if d.eventIdx {
			binary.LittleEndian.PutUint16(d.mem.Bytes[d.Layout.Avail+4+2*uint64(d.Layout.Size):], d.seen)
			var fence atomic.Uint32
			fence.Add(1)
			if head, n, ok := d.Next(); ok {
				return head, n, true
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, 0, false
		}
		fds := []unix.PollFd{{Fd: int32(d.Call.FD()), Events: unix.POLLIN}}
		if k, _ := unix.Poll(fds, int(left.Milliseconds())+1); k > 0 {
			d.Call.Wait()
		}
	}
}
