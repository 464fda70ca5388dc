// Package lan is a learning Ethernet switch in user space. Its ports are network
// devices of this process, a gateway, VMs of other processes, and QEMU's.
//
// There is no switch process: every VM has a switch of its own, and the switches
// of one name know each other (see Join). Each sends a frame straight to the one
// that it is for.
package lan

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"vmm/internal/iovec"
	"vmm/network/ether"
)

// maxTable bounds the addresses that are remembered; more are forgotten all at
// once, and learned again.
const maxTable = 4096

// output is where a port's frames go. The parts may be guest memory, and are
// good until send returns.
type output interface {
	// It is false if there is no room, of which Ready tells.
	send(queue int, h ether.Header, parts [][]byte) bool
	// sent tells that there is nothing more for now.
	sent(queue int)
}

// port is one of a switch's ports.
type port struct {
	out output
	// mesh ports lead to switches that have the frames of all others already, so
	// nothing goes from one to another.
	mesh bool
}

// Switch is a switch. Its ports are added and removed while it works: its methods can be
// called from any goroutine. What is added to a closed one is closed too.
type Switch struct {
	mu     sync.RWMutex
	ports  []*port
	table  map[ether.MAC]*port
	links  []ether.Link
	open   map[io.Closer]bool // what Close closes
	closed bool
	group  sync.WaitGroup

	roomMu sync.Mutex
	room   sync.Cond
	ready  uint64 // how often the device had room again
	ended  bool
}

// New makes a switch without ports.
func New() *Switch {
	s := &Switch{table: map[ether.MAC]*port{}, open: map[io.Closer]bool{}}
	s.room.L = &s.roomMu
	return s
}

// add puts a port in; false if the switch is closed.
func (s *Switch) add(p *port) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.ports = append(s.ports[:len(s.ports):len(s.ports)], p) // forward goes over the old ones
	return true
}

// remove takes a port out.
func (s *Switch) remove(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []*port
	for _, q := range s.ports {
		if q != p {
			left = append(left, q)
		}
	}
	s.ports = left
	for m, q := range s.table {
		if q == p {
			delete(s.table, m)
		}
	}
}

// own has something closed with the switch; false if that is closed already.
func (s *Switch) own(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.open[c] = true
	}
	return !s.closed
}

// disown forgets what was closed.
func (s *Switch) disown(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// forward brings a frame that came in by a port to where it belongs; false if
// that has no room. What is for all is not waited for.
func (s *Switch) forward(from *port, queue int, h ether.Header, parts [][]byte) bool {
	var head [12]byte
	if iovec.Gather(head[:], parts) < len(head) {
		return true
	}
	dst, src := ether.MAC(head[:6]), ether.MAC(head[6:])
	s.mu.RLock()
	to, known, ports := s.table[dst], s.table[src] == from, s.ports
	s.mu.RUnlock()
	if !known && !src.Multicast() {
		s.learn(src, from)
	}
	if to != nil {
		return to == from || to.mesh && from.mesh || to.out.send(queue, h, parts)
	}
	for _, p := range ports {
		if p != from && !(p.mesh && from.mesh) {
			p.out.send(queue, h, parts)
		}
	}
	return true
}

// sent tells all other ports that there is nothing more for now.
func (s *Switch) sent(from *port, queue int) {
	s.mu.RLock()
	ports := s.ports
	s.mu.RUnlock()
	for _, p := range ports {
		if p != from {
			p.out.sent(queue)
		}
	}
}

// learn notes behind which port an address is.
func (s *Switch) learn(m ether.MAC, p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.table) >= maxTable {
		clear(s.table)
	}
	for _, q := range s.ports {
		if q == p { // not removed meanwhile
			s.table[m] = p
		}
	}
}

// forwardLater is forward that waits for room, for a while.
func (s *Switch) forwardLater(from *port, h ether.Header, parts [][]byte) {
	deadline := time.Now().Add(roomTimeout)
	for seen := s.readyCount(); !s.forward(from, 0, h, parts); seen = s.readyCount() {
		if !s.waitRoom(seen, deadline) {
			return
		}
	}
}

// roomTimeout is how long a frame from elsewhere waits for a guest's receive
// buffers.
const roomTimeout = 100 * time.Millisecond

func (s *Switch) readyCount() uint64 {
	s.roomMu.Lock()
	defer s.roomMu.Unlock()
	return s.ready
}

// waitRoom returns true when the device had room since seen was counted.
func (s *Switch) waitRoom(seen uint64, deadline time.Time) bool {
	wake := time.AfterFunc(time.Until(deadline), func() {
		s.roomMu.Lock()
		defer s.roomMu.Unlock()
		s.room.Broadcast()
	})
	defer wake.Stop()
	s.roomMu.Lock()
	defer s.roomMu.Unlock()
	for s.ready == seen && !s.ended && time.Now().Before(deadline) {
		s.room.Wait()
	}
	return s.ready != seen && !s.ended
}

// Close closes all ports and waits for what they do.
func (s *Switch) Close() error {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = map[io.Closer]bool{}
	s.mu.Unlock()
	s.roomMu.Lock()
	s.ended = true
	s.room.Broadcast()
	s.roomMu.Unlock()
	var errs []error
	for c := range open {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) { // it ended by itself just now
			errs = append(errs, err)
		}
	}
	s.group.Wait()
	return errors.Join(errs...)
}

// Connect adds a link's other end to the switch: a gateway, say. The link is
// closed with the switch.
func (s *Switch) Connect(link ether.Link) {
	p := &port{out: linkOutput{link}}
	if !s.own(link) {
		link.Close()
		return
	}
	link.Attach(linkNIC{s, p})
	link.Offloads(ether.Offloads{Checksum: true, TCP4: true, TCP6: true, UDP4: true, UDP6: true})
	s.mu.Lock()
	s.links = append(s.links, link)
	s.mu.Unlock()
	s.add(p)
}

// linkOutput sends a link what comes to its port.
type linkOutput struct{ link ether.Link }

func (o linkOutput) send(queue int, h ether.Header, parts [][]byte) bool {
	o.link.Send(queue, h, parts)
	return true
}

func (o linkOutput) sent(queue int) { o.link.Sent(queue) }

// linkNIC is the device of a link whose frames go to the switch.
type linkNIC struct {
	s *Switch
	p *port
}

// Receive implements ether.NIC.
func (n linkNIC) Receive(hash uint32, h ether.Header, parts [][]byte) bool {
	return n.s.forward(n.p, int(hash%maxQueues), h, parts)
}

// Flush implements ether.NIC.
func (n linkNIC) Flush() { n.s.sent(n.p, 0) }

// maxQueues bounds the queue numbers that hashes become.
const maxQueues = 64

// Link returns the cable to the switch of this process's device. Closing it
// closes the switch.
func (s *Switch) Link() ether.Link {
	l := &cable{s: s}
	l.port = &port{out: l}
	return l
}

// cable implements ether.Link, and is the output of the device's port.
type cable struct {
	s    *Switch
	port *port
	nic  ether.NIC
}

// Attach implements ether.Link.
func (l *cable) Attach(n ether.NIC) {
	l.nic = n
	l.s.add(l.port)
}

// Send implements ether.Link. The others of this process's ports do not wait.
func (l *cable) Send(queue int, h ether.Header, parts [][]byte) { l.s.forward(l.port, queue, h, parts) }

// Sent implements ether.Link.
func (l *cable) Sent(queue int) { l.s.sent(l.port, queue) }

// Offloads implements ether.Link: the device does what its driver does not take.
func (l *cable) Offloads(ether.Offloads) {}

// Ready implements ether.Link.
func (l *cable) Ready() {
	s := l.s
	s.roomMu.Lock()
	s.ready++
	s.room.Broadcast()
	s.roomMu.Unlock()
	s.mu.RLock()
	links := s.links
	s.mu.RUnlock()
	for _, link := range links {
		link.Ready()
	}
}

// Close implements ether.Link.
func (l *cable) Close() error {
	l.s.remove(l.port)
	return l.s.Close()
}

// send implements output.
func (l *cable) send(queue int, h ether.Header, parts [][]byte) bool {
	return l.nic.Receive(uint32(queue), h, parts)
}

// sent implements output.
func (l *cable) sent(int) { l.nic.Flush() }
