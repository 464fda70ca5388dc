// Package tap is a network device's cable into a tap interface of the host's
// kernel: to a bridge, a route, or whatever the host does with it.
package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
	"vmm/network/ether"
	"vmm/network/iface"
)

const (
	devicePath = "/dev/net/tun"
	maxIovecs  = 128
)

// Link is a tap interface. It implements ether.Link.
type Link struct {
	name   string
	queues []*queue
	nic    ether.NIC
	group  sync.WaitGroup

	mu     sync.Mutex
	room   sync.Cond // the device may have room again
	closed bool
	ready  uint64 // how often Ready was called
}

// queue is one of the interface's queues, a file of its own.
type queue struct {
	file *os.File
	fd   int
	buf  []byte

	mu     sync.Mutex // of sending
	header [ether.HeaderSize]byte
	iov    [maxIovecs]unix.Iovec
}

// Open opens an interface with a number of queues (1 if that is less), and creates it if
// it is not there. With an empty name the kernel chooses one. One that is there with one
// queue is opened with that: see Queues. The error says what is missing, and as a command
// what would give it to this user.
func Open(name string, queues int) (*Link, error) {
	l := &Link{name: name}
	l.room.L = &l.mu
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("interface name %q: at most %d characters", name, unix.IFNAMSIZ-1)
	}
	exists := false
	if name != "" {
		_, err := os.Stat("/sys/class/net/" + name)
		exists = err == nil
	}
	for i := range max(queues, 1) {
		q, err := l.openQueue(queues > 1)
		if errors.Is(err, unix.EINVAL) && queues > 1 && i == 0 { // it exists, with one queue
			queues = 1
			q, err = l.openQueue(false)
		}
		if err != nil {
			return nil, errors.Join(l.explain(err), l.Close())
		}
		l.queues = append(l.queues, q)
		if queues == 1 {
			break
		}
	}
	if !exists {
		if err := iface.Up(l.name); err != nil {
			return nil, errors.Join(l.explain(err), l.Close())
		}
	}
	return l, nil
}

// Queues is how many the interface has.
func (l *Link) Queues() int { return len(l.queues) }

// explain says what to do about an error.
func (l *Link) explain(err error) error {
	name := l.name
	if name == "" {
		name = "tap0"
	}
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: this host has no tap interfaces: as root: modprobe tun", devicePath)
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("tap %s: no permission: as root: ip tuntap add dev %s mode tap user %d vnet_hdr && ip link set %s up", name, name, os.Getuid(), name)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("tap %s: another process uses it", name)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s is no tap interface, or of another kind", name)
	}
	return fmt.Errorf("tap %s: %w", name, err)
}

func (l *Link) openQueue(multi bool) (*queue, error) {
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	q := &queue{fd: fd, buf: make([]byte, ether.HeaderSize+ether.MaxFrame)}
	r, err := unix.NewIfreq(l.name)
	if err == nil {
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if multi {
			flags |= unix.IFF_MULTI_QUEUE
		}
		r.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil {
		l.name = r.Name()
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, ether.HeaderSize)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	q.file = os.NewFile(uintptr(fd), "tap")
	return q, nil
}

// Attach implements ether.Link.
func (l *Link) Attach(n ether.NIC) {
	l.nic = n
	for i, q := range l.queues {
		l.group.Go(func() { l.receive(uint32(i), q) })
	}
}

// From <linux/if_tun.h>, newer than x/sys has them.
const (
	tunOffloadUSO4 = 0x20
	tunOffloadUSO6 = 0x40
)

// Offloads implements ether.Link: the kernel is told what need not be done.
func (l *Link) Offloads(o ether.Offloads) {
	bits := 0
	if o.Checksum {
		bits = unix.TUN_F_CSUM
		if o.TCP4 {
			bits |= unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
		}
		if o.TCP6 {
			bits |= unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		}
	}
	uso := 0
	if o.Checksum && o.UDP4 && o.UDP6 {
		uso = tunOffloadUSO4 | tunOffloadUSO6
	}
	for _, q := range l.queues {
		if uso == 0 || unix.IoctlSetInt(q.fd, unix.TUNSETOFFLOAD, bits|uso) != nil { // before Linux 6.2
			unix.IoctlSetInt(q.fd, unix.TUNSETOFFLOAD, bits)
		}
	}
}

// Send implements ether.Link. The kernel checks the header.
func (l *Link) Send(queue int, h ether.Header, parts [][]byte) {
	q := l.queues[queue%len(l.queues)]
	q.mu.Lock()
	defer q.mu.Unlock()
	h.Buffers = 0 // not for this direction
	h.Encode(q.header[:])
	// Lost if it cannot be sent, as on any network, and if it is in more parts
	// than any driver makes.
	if len(parts) < len(q.iov) {
		iov := iovec.Append(iovec.Append(q.iov[:0], q.header[:]), parts...)
		unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&q.iov)), uintptr(len(iov)))
	}
}

// Sent implements ether.Link.
func (l *Link) Sent(int) {}

// receive gives the device what comes in by a queue.
func (l *Link) receive(i uint32, q *queue) {
	parts := make([][]byte, 1)
	for {
		n, err := q.file.Read(q.buf)
		if err != nil {
			if errors.Is(err, os.ErrClosed) || !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EBADFD) {
				return
			}
			continue
		}
		if n < ether.HeaderSize+ether.FrameHeader {
			continue
		}
		h := ether.Decode(q.buf)
		parts[0] = q.buf[ether.HeaderSize:n]
		for seen := l.readyCount(); !l.nic.Receive(i, h, parts); seen = l.readyCount() {
			if !l.waitRoom(seen) {
				return
			}
		}
		l.nic.Flush()
	}
}

func (l *Link) readyCount() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

// waitRoom returns when Ready was called more often than seen; false when the
// link is closed.
func (l *Link) waitRoom(seen uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.ready == seen && !l.closed {
		l.room.Wait()
	}
	return !l.closed
}

// Ready implements ether.Link.
func (l *Link) Ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready++
	l.room.Broadcast()
}

// Close implements ether.Link.
func (l *Link) Close() error {
	l.mu.Lock()
	l.closed = true
	l.room.Broadcast()
	l.mu.Unlock()
	var errs []error
	for _, q := range l.queues {
		q.mu.Lock() // of a Send under way
		errs = append(errs, q.file.Close())
		q.fd = -1
		q.mu.Unlock()
	}
	l.group.Wait()
	return errors.Join(errs...)
}
