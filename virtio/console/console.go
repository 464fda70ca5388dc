// Package console is the virtio console (virtio 1.2, 5.3): the guest's
// terminal hvc0, and further ports that are plain streams of bytes with names.
package console

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"vmm/internal/iovec"
	"vmm/virtio"
)

// Feature bits (5.3.3).
const (
	featureSize      = 1 << 0 // VIRTIO_CONSOLE_F_SIZE
	featureMultiport = 1 << 1 // VIRTIO_CONSOLE_F_MULTIPORT
	featureEmergency = 1 << 2 // VIRTIO_CONSOLE_F_EMERG_WRITE
)

// Events of control messages (5.3.6.2).
const (
	eventDeviceReady = 0 // VIRTIO_CONSOLE_DEVICE_READY
	eventPortAdd     = 1 // VIRTIO_CONSOLE_DEVICE_ADD
	eventPortReady   = 3 // VIRTIO_CONSOLE_PORT_READY
	eventConsolePort = 4 // VIRTIO_CONSOLE_CONSOLE_PORT
	eventResize      = 5 // VIRTIO_CONSOLE_RESIZE
	eventPortOpen    = 6 // VIRTIO_CONSOLE_PORT_OPEN
	eventPortName    = 7 // VIRTIO_CONSOLE_PORT_NAME

	controlSize = 8 // struct virtio_console_control
)

// Offsets in struct virtio_console_config (5.3.4).
const (
	configCols      = 0
	configRows      = 2
	configMaxPorts  = 4
	configEmergency = 8
	configSize      = 12
)

// The queues: port 0's, then those for control, then the other ports'.
const (
	queueControlIn  = 2
	queueControlOut = 3

	queueSize = 128
	// maxControl bounds the control messages that wait for a driver that takes
	// none.
	maxControl = 1024

	// maxWrite bounds what a driver writes by one request, in bytes: Linux writes
	// 32 KiB. maxPiece bounds what of it goes on at once, and is kept by who does.
	maxWrite = 1 << 20
	maxPiece = 64 << 10
)

// MaxPorts bounds the ports of a device, the console, which is port 0, included.
const MaxPorts = 31

// Port is a further port.
type Port struct {
	Name string    // in the guest: /dev/virtio-ports/NAME, made by udev
	Out  io.Writer // what the guest writes; nil drops it
}

// Device is a console with its ports.
type Device struct {
	ports []*port

	mu         sync.Mutex
	changed    sync.Cond
	cols, rows uint16
	control    virtio.Control // nil while not started
	messages   [][]byte       // for the driver
	listening  *time.Timer    // opens the console's input at the latest
	closed     bool
}

// silent is how long a guest's console may say nothing before input is sent
// anyway. Linux drops what comes between its first buffers and the moment at
// which it knows the port for its console; once it writes, it knows.
const silent = 3 * time.Second

// port is one port's state; the device's mu guards it.
type port struct {
	Port
	input []byte // what Receive brings, until the driver has taken it
	open  bool   // the guest reads it
	rx    virtio.Chain
	tx    virtio.Chain
}

// New returns a console whose output goes to out, with further ports.
func New(out io.Writer, ports ...Port) (*Device, error) {
	if len(ports) >= MaxPorts {
		return nil, errors.New("too many ports of the console")
	}
	d := &Device{}
	d.changed.L = &d.mu
	for _, p := range append([]Port{{Out: out}}, ports...) {
		if p.Out == nil {
			p.Out = io.Discard
		}
		d.ports = append(d.ports, &port{Port: p})
	}
	return d, nil
}

// Type implements virtio.Device.
func (d *Device) Type() virtio.DeviceType { return virtio.TypeConsole }

// multiport reports whether there is more than a console.
func (d *Device) multiport() bool { return len(d.ports) > 1 }

// Features implements virtio.Device. A console alone does without control
// messages: its size is in the configuration then, where no driver mistakes
// columns for rows.
func (d *Device) Features() uint64 {
	f := uint64(featureSize | featureEmergency)
	if d.multiport() {
		f |= featureMultiport
	}
	return f
}

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	n := 2
	if d.multiport() {
		n = 2 + 2*len(d.ports)
	}
	out := make([]uint16, n)
	for i := range out {
		out[i] = queueSize
	}
	return out
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint32, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c [configSize]byte
	binary.LittleEndian.PutUint16(c[configCols:], d.cols)
	binary.LittleEndian.PutUint16(c[configRows:], d.rows)
	binary.LittleEndian.PutUint32(c[configMaxPorts:], uint32(len(d.ports)))
	clear(data)
	if offset < configSize {
		copy(data, c[offset:])
	}
}

// WriteConfig implements virtio.Device: an emergency write is a character from
// a driver that has no queues yet.
func (d *Device) WriteConfig(offset uint32, data []byte) {
	if offset == configEmergency && len(data) > 0 {
		d.ports[0].Out.Write(data[:1])
	}
}

// Start implements virtio.Device.
func (d *Device) Start(_ uint64, c virtio.Control) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.control = c
	d.listening = time.AfterFunc(silent, d.listen)
	if d.cols > 0 && !d.multiport() {
		c.ConfigChanged() // Linux reads the size only then
	}
}

// listen lets input through to the console.
func (d *Device) listen() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.control != nil && !d.ports[0].open {
		d.ports[0].open = true
		d.wake(rxQueue(0))
	}
}

// StopQueue implements virtio.Device: nothing goes on outside HandleQueue.
func (d *Device) StopQueue(int) {}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listening.Stop()
	d.control, d.messages = nil, nil
	for _, p := range d.ports {
		p.open = false
	}
}

// Close implements virtio.Device. It ends all Receives.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.changed.Broadcast()
	return nil
}

// rxQueue is the queue by which port i gets its input.
func rxQueue(i int) int {
	if i == 0 {
		return 0
	}
	return 2 + 2*i
}

// HandleQueue implements virtio.Device.
func (d *Device) HandleQueue(i int, q *virtio.Queue) error {
	defer q.Notify()
	switch {
	case i == queueControlIn:
		return d.sendControl(q)
	case i == queueControlOut:
		return d.receiveControl(q)
	}
	n := 0
	if i >= 4 {
		n = (i - 2) / 2
	}
	if i%2 == 0 {
		return d.fill(d.ports[n], q)
	}
	return d.drain(d.ports[n], q)
}

// drain writes out what the guest sends.
func (d *Device) drain(p *port, q *virtio.Queue) error {
	for {
		ok, err := q.Pop(&p.tx)
		if err != nil || !ok {
			return err
		}
		if n := iovec.Len(p.tx.Readable); n > maxWrite {
			return fmt.Errorf("%w: %d bytes of output at once, at most %d", virtio.ErrMalformed, n, maxWrite)
		}
		for _, b := range p.tx.Readable {
			for piece := range slices.Chunk(b, maxPiece) {
				p.Out.Write(piece) // nobody to tell of an error: as on a cable
			}
		}
		if p == d.ports[0] {
			d.listen()
		}
		q.Push(&p.tx, 0)
		q.Notify() // what follows may take long to write
	}
}

// fill gives the guest what Receive has brought.
func (d *Device) fill(p *port, q *virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p.open && len(p.input) > 0 {
		ok, err := q.Pop(&p.rx)
		if err != nil || !ok {
			return err
		}
		n := iovec.Scatter(p.rx.Writable, p.input)
		p.input = p.input[n:]
		q.Push(&p.rx, uint32(n))
	}
	if len(p.input) == 0 {
		d.changed.Broadcast()
	}
	return nil
}

// Receive sends bytes to port i of the guest, 0 is the console, and waits until
// the guest's driver has taken them.
func (d *Device) Receive(i int, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.ports[i]
	for len(p.input) > 0 && !d.closed { // somebody else's
		d.changed.Wait()
	}
	p.input = b
	d.wake(rxQueue(i))
	for len(p.input) > 0 && !d.closed {
		d.changed.Wait()
	}
	if d.closed {
		return io.ErrClosedPipe
	}
	return nil
}

// wake has a queue looked at; mu is held.
func (d *Device) wake(queue int) {
	if d.control != nil {
		d.control.Wake(queue)
	}
}

// Resize tells the guest the size of the terminal, in characters.
func (d *Device) Resize(cols, rows int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cols, d.rows = uint16(cols), uint16(rows)
	if d.control == nil {
		return
	}
	if d.multiport() {
		d.tellSize()
	} else {
		d.control.ConfigChanged()
	}
}

// tellSize sends the size as the specification has it (5.3.6.2). Older Linux took the
// columns for the rows. mu is held.
func (d *Device) tellSize() {
	if d.cols == 0 || d.rows == 0 {
		return
	}
	body := binary.LittleEndian.AppendUint16(nil, d.cols)
	d.tell(0, eventResize, 0, binary.LittleEndian.AppendUint16(body, d.rows))
}

// tell queues a control message; mu is held.
func (d *Device) tell(id uint32, event, value uint16, body []byte) {
	if len(d.messages) >= maxControl {
		return
	}
	m := binary.LittleEndian.AppendUint32(nil, id)
	m = binary.LittleEndian.AppendUint16(m, event)
	m = binary.LittleEndian.AppendUint16(m, value)
	d.messages = append(d.messages, append(m, body...))
	d.wake(queueControlIn)
}

// sendControl gives the driver the messages that wait for it.
func (d *Device) sendControl(q *virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c virtio.Chain
	for len(d.messages) > 0 {
		ok, err := q.Pop(&c)
		if err != nil || !ok {
			return err
		}
		n := iovec.Scatter(c.Writable, d.messages[0])
		d.messages = d.messages[1:]
		q.Push(&c, uint32(n))
	}
	return nil
}

// receiveControl reads the driver's messages.
func (d *Device) receiveControl(q *virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c virtio.Chain
	for {
		ok, err := q.Pop(&c)
		if err != nil || !ok {
			return err
		}
		var m [controlSize]byte
		if iovec.Gather(m[:], c.Readable) == controlSize {
			d.controlMessage(binary.LittleEndian.Uint32(m[:]), binary.LittleEndian.Uint16(m[4:]), binary.LittleEndian.Uint16(m[6:]))
		}
		q.Push(&c, 0)
	}
}

// controlMessage answers one message; mu is held.
func (d *Device) controlMessage(id uint32, event, value uint16) {
	if event == eventDeviceReady && value == 1 {
		for i := range d.ports {
			d.tell(uint32(i), eventPortAdd, 1, nil)
		}
		return
	}
	if id >= uint32(len(d.ports)) {
		return
	}
	p := d.ports[id]
	switch event {
	case eventPortReady:
		if value != 1 {
			return
		}
		if id == 0 {
			d.tell(id, eventConsolePort, 1, nil)
			d.tellSize()
		} else {
			d.tell(id, eventPortName, 1, []byte(p.Name))
		}
		d.tell(id, eventPortOpen, 1, nil)
	case eventPortOpen:
		if id != 0 {
			p.open = value == 1
		}
	}
	d.wake(rxQueue(int(id)))
}
