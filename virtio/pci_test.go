package virtio

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/devices"
)

// echo is a device that gives every chain back, with what it read.
type echo struct {
	mu      sync.Mutex
	chain   Chain
	started uint64 // features
	resets  int
	stopped int
	control Control
	onReset func() // called by Reset, if it is not nil
}

func (d *echo) Type() DeviceType                    { return TypeRNG }
func (d *echo) Features() uint64                    { return 1 << 5 }
func (d *echo) QueueSizes() []uint16                { return []uint16{testSize, testSize} }
func (d *echo) ReadConfig(offset uint32, b []byte)  { clear(b); b[0] = byte(offset) }
func (d *echo) WriteConfig(offset uint32, b []byte) {}
func (d *echo) Close() error                        { return nil }

func (d *echo) Start(f uint64, c Control) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.started, d.control = f, c
}

func (d *echo) StopQueue(int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped++
}

func (d *echo) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resets++
	if d.onReset != nil {
		d.onReset()
	}
}

func (d *echo) HandleQueue(_ int, q *Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		ok, err := q.Pop(&d.chain)
		if err != nil || !ok {
			q.Notify()
			return err
		}
		n := 0
		for _, b := range d.chain.Readable {
			n += len(b)
		}
		q.Push(&d.chain, uint32(n))
	}
}

// host is a machine for transports.
type host struct {
	mu     sync.Mutex
	events map[IOEvent]int
	routes map[uint64]int // signals, by address
}

func newHost() *host { return &host{events: map[IOEvent]int{}, routes: map[uint64]int{}} }

type testMSI struct {
	h       *host
	address uint64
}

func (h *host) NewMSI() (devices.MSI, error)               { return &testMSI{h: h}, nil }
func (m *testMSI) Close() error                            { return nil }
func (m *testMSI) Route(address uint64, data uint32) error { m.address = address; return nil }
func (h *host) SetIOEvent(e IOEvent, fd int, on bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, there := h.events[e]
	switch {
	case on && there:
		return unix.EEXIST
	case on:
		h.events[e] = fd
	case there && at == fd:
		delete(h.events, e)
	default:
		return unix.ENOENT
	}
	return nil
}

func (m *testMSI) Signal() {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	m.h.routes[m.address]++
}

func (h *host) signals(address uint64) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.routes[address]
}

// line is an interrupt line that is looked at.
type line struct {
	mu    sync.Mutex
	level bool
}

func (l *line) Set(v bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.level = v
}

func (l *line) get() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to this: ", what)
		}
	}
}

// pciGuest drives a PCI device by hand.
type pciGuest struct {
	*PCI
	t   testing.TB
	dev *echo
	h   *host
	pin *line
	m   ram
	log *notes
}

// notes are what a transport says.
type notes struct {
	mu   sync.Mutex
	errs []error
}

func (n *notes) add(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.errs = append(n.errs, err)
}

func (n *notes) all() []error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.errs
}

func newPCIGuest(t testing.TB) *pciGuest {
	g := &pciGuest{t: t, dev: &echo{}, h: newHost(), pin: &line{}, m: make(ram, testRAM), log: &notes{}}
	g.PCI = NewPCI(g.dev, g.m, g.h, g.log.add)
	g.Place(0xc0000000, 16, g.pin)
	g.ConfigWrite(4, []byte{6, 0})
	return g
}

func (g *pciGuest) set(reg uint64, size int, v uint64) {
	b := binary.LittleEndian.AppendUint64(nil, v)
	g.BARWrite(reg, b[:size])
}

func (g *pciGuest) get(reg uint64, size int) uint64 {
	var b [8]byte
	g.BARRead(reg, b[:size])
	return binary.LittleEndian.Uint64(b[:])
}

// negotiate takes features and brings the device to FEATURES_OK.
func (g *pciGuest) negotiate(features uint64) bool {
	g.set(regStatus, 1, statusAcknowledge|statusDriver)
	for sel := range uint64(2) {
		g.set(regDriverFeatureSel, 4, sel)
		g.set(regDriverFeature, 4, features>>(32*sel)&0xffffffff)
	}
	g.set(regStatus, 1, statusAcknowledge|statusDriver|statusFeaturesOK)
	return g.get(regStatus, 1)&statusFeaturesOK != 0
}

// run sets queue 0 up and starts the device.
func (g *pciGuest) run() {
	g.enable(0)
	g.set(regStatus, 1, statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK)
}

func (g *pciGuest) enable(queue uint64) {
	g.set(regQueueSel, 2, queue)
	g.set(regQueueDesc, 4, testDesc)
	g.set(regQueueDriver, 4, testAvail)
	g.set(regQueueDevice, 4, testUsed)
	g.set(regQueueEnable, 2, 1)
}

func (g *pciGuest) used() uint16 { return load16(half(g.m, testUsed+2)) }

func TestNegotiation(t *testing.T) {
	for _, c := range []struct {
		features uint64
		ok       bool
	}{
		{FeatureVersion1, true}, {FeatureVersion1 | 1<<5 | FeatureEventIdx, true},
		{1 << 5, false},                 // a legacy driver
		{FeatureVersion1 | 1<<6, false}, // not offered
	} {
		g := newPCIGuest(t)
		if got := g.negotiate(c.features); got != c.ok {
			t.Errorf("features %#x: FEATURES_OK is %v", c.features, got)
		}
		if c.ok {
			if g.run(); g.dev.started != c.features {
				t.Errorf("started with %#x, want %#x", g.dev.started, c.features)
			}
		}
		g.Close()
	}
}

// TestINTx uses the pin, which the driver's read of the ISR releases, and
// which the command register turns off.
func TestINTx(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.run()
	g.m.desc(0, 0, testData, 7, 0, 0)
	g.m.publish(0)
	g.set(barNotify, 2, 0)
	eventually(t, "the pin is up", g.pin.get)
	if g.get(barISR, 1) != isrQueue || g.pin.get() {
		t.Error("reading the ISR did not release the pin")
	}
	if g.used() != 1 {
		t.Errorf("%d chains used", g.used())
	}
	g.dev.control.ConfigChanged()
	eventually(t, "the pin is up for the configuration", g.pin.get)
	g.ConfigWrite(4, []byte{6, 4})
	if g.pin.get() {
		t.Error("the pin is up though INTx is disabled")
	}
	if g.get(barISR, 1) != isrConfig || g.get(regGeneration, 1) == 0 {
		t.Error("nothing tells of the configuration's change")
	}
}

// TestMSIX masks and unmasks a vector.
func TestMSIX(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.set(regQueueSel, 2, 0)
	g.set(regQueueVector, 2, 1)
	if g.set(regConfigVector, 2, 99); g.get(regConfigVector, 2) != pciNoVector {
		t.Error("a vector that there is not was taken")
	}
	g.set(barMSIX+16, 8, 0xfee00000)
	g.ConfigWrite(uint16(g.msixCap+2), []byte{0, 0x80})
	g.run()
	g.m.desc(0, 0, testData, 7, 0, 0)
	g.m.publish(0)
	g.set(barNotify, 2, 0)
	eventually(t, "pending while masked", func() bool { return g.get(barPBA, 8) == 2 })
	if g.h.signals(0xfee00000) != 0 || g.pin.get() {
		t.Error("a masked vector was signalled")
	}
	g.set(barMSIX+16+12, 4, 0)
	if g.h.signals(0xfee00000) != 1 || g.get(barPBA, 8) != 0 {
		t.Error("unmasking did not signal what was pending")
	}
	g.m.publish(0)
	g.set(barNotify, 2, 0)
	eventually(t, "signalled", func() bool { return g.h.signals(0xfee00000) == 2 })
}

// TestNotifyEvents: kicks follow the BAR.
func TestNotifyEvents(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.run()
	at := func(base uint64) IOEvent { return IOEvent{Address: base + barNotify, Value: AnyValue} }
	if _, ok := g.h.events[at(0xc0000000)]; !ok || len(g.h.events) != 1 {
		t.Fatalf("events: %v", g.h.events)
	}
	g.ConfigWrite(0x10, []byte{0, 0, 0, 0xd0})
	if _, ok := g.h.events[at(0xd0000000)]; !ok || len(g.h.events) != 1 {
		t.Errorf("events after the BAR was moved: %v", g.h.events)
	}
	g.ConfigWrite(4, []byte{0, 0})
	if len(g.h.events) != 0 {
		t.Errorf("events without memory: %v", g.h.events)
	}
	g.ConfigWrite(4, []byte{2, 0})
	g.set(regStatus, 1, 0)
	if len(g.h.events) != 0 || g.dev.resets != 1 || g.dev.stopped != 1 {
		t.Errorf("after a reset: events %v, %d resets, %d queues stopped", g.h.events, g.dev.resets, g.dev.stopped)
	}
}

// TestNotifyEventTaken: where another device's notifications are, a queue works without an
// event, and none is left of it when the BAR is moved away and the queue is gone.
func TestNotifyEventTaken(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	at := IOEvent{Address: 0xc0000000 + barNotify, Value: AnyValue}
	const others = -1
	g.h.events[at] = others
	g.negotiate(FeatureVersion1)
	g.run()
	g.m.desc(0, 0, testData, 7, 0, 0)
	g.m.publish(0)
	g.set(barNotify, 2, 0)
	eventually(t, "the queue works", func() bool { return g.used() == 1 })
	g.ConfigWrite(0x10, []byte{0, 0, 0, 0xd0})
	if len(g.h.events) != 2 || g.h.events[at] != others {
		t.Errorf("events after the BAR was moved away: %v", g.h.events)
	}
	if g.set(regStatus, 1, 0); len(g.h.events) != 1 || g.h.events[at] != others {
		t.Errorf("events after a reset: %v", g.h.events)
	}
}

func TestQueueReset(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1 | FeatureRingReset)
	g.run()
	g.set(regQueueReset, 2, 1)
	if g.get(regQueueEnable, 2) != 0 || g.get(regQueueReset, 2) != 0 || g.dev.stopped != 1 || g.dev.resets != 0 {
		t.Errorf("enabled %d, reset %d", g.get(regQueueEnable, 2), g.get(regQueueReset, 2))
	}
	clear(g.m)
	g.enable(0)
	g.m.desc(0, 0, testData, 7, 0, 0)
	g.m.publish(0)
	g.set(barNotify, 2, 0)
	eventually(t, "the queue works again", func() bool { return g.used() == 1 })
}

// TestBARSize does what a kernel does to learn a BAR's size.
func TestBARSize(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.ConfigWrite(4, []byte{0, 0})
	g.ConfigWrite(0x10, []byte{0xff, 0xff, 0xff, 0xff})
	var b [4]byte
	g.ConfigRead(0x10, b[:])
	if size := -binary.LittleEndian.Uint32(b[:]); size != pciBARSize {
		t.Errorf("BAR of %#x bytes", size)
	}
}

// TestConfigAccess reads the common configuration through the window in
// configuration space (4.1.4.9).
func TestConfigAccess(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	at := uint16(g.pciCap)
	g.ConfigWrite(at+8, []byte{regNumQueues, 0, 0, 0})
	g.ConfigWrite(at+12, []byte{2, 0, 0, 0})
	var b [2]byte
	if g.ConfigRead(at+16, b[:]); b[0] != 2 {
		t.Errorf("%d queues", b[0])
	}
}

func TestMMIOTransport(t *testing.T) {
	dev, h, pin, m := &echo{}, newHost(), &line{}, make(ram, testRAM)
	mm := NewMMIO(dev, m, h, 0x1000, pin, func(error) {})
	defer mm.Close()
	set := func(reg uint64, v uint32) { mm.Write(reg, binary.LittleEndian.AppendUint32(nil, v)) }
	get := func(reg uint64) uint32 {
		var b [4]byte
		mm.Read(reg, b[:])
		return binary.LittleEndian.Uint32(b[:])
	}
	if get(mmioMagic) != mmioMagicValue || get(mmioVersion) != 2 || get(mmioDeviceID) != uint32(TypeRNG) {
		t.Error("it is not a virtio device")
	}
	set(mmioStatus, 3)
	set(mmioDriverFeatureSel, 1)
	set(mmioDriverFeatures, FeatureVersion1>>32)
	set(mmioStatus, 11)
	if get(mmioQueueSizeMax) != testSize {
		t.Errorf("queues of %d", get(mmioQueueSizeMax))
	}
	set(mmioQueueSize, testSize)
	set(mmioQueueDesc, testDesc)
	set(mmioQueueDriver, testAvail)
	set(mmioQueueDevice, testUsed)
	set(mmioQueueReady, 1)
	set(mmioStatus, 15)
	if _, ok := h.events[IOEvent{0x1050, 4, 0}]; !ok {
		t.Errorf("events: %v", h.events)
	}
	m.desc(0, 0, testData, 7, 0, 0)
	m.publish(0)
	set(mmioQueueNotify, 0)
	eventually(t, "an interrupt", pin.get)
	if get(mmioInterruptStatus) != isrQueue {
		t.Error("no reason for the interrupt")
	}
	if set(mmioInterruptACK, isrQueue); pin.get() {
		t.Error("acknowledged, and still up")
	}
	set(mmioQueueNotify, 77) // no such queue
	if set(mmioStatus, 0); get(mmioStatus) != 0 || dev.resets != 1 {
		t.Error("it was not reset")
	}
}

// TestGivesUp: a broken queue sets NEEDS_RESET and tells the driver.
func TestGivesUp(t *testing.T) {
	g := newPCIGuest(t)
	defer g.Close()
	g.negotiate(FeatureVersion1)
	g.run()
	g.m.publish(testSize + 1)
	g.set(barNotify, 2, 0)
	eventually(t, "NEEDS_RESET", func() bool { return g.get(regStatus, 1)&statusNeedsReset != 0 })
	eventually(t, "the pin is up", g.pin.get)
	if err := (&echo{}).HandleQueue(0, testQueue(t, g.m, 0, func() {})); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// FuzzPCI lets a driver do anything with the registers.
func FuzzPCI(f *testing.F) {
	f.Add([]byte{0, byte(regStatus), 3, 0, byte(regStatus), 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		g := newPCIGuest(t)
		defer g.Close()
		g.negotiate(FeatureVersion1 | FeatureRingReset | FeatureIndirectDesc)
		for len(script) >= 4 {
			op, reg, v := script[0], uint64(script[1]), uint64(script[2])|uint64(script[3])<<8
			script = script[4:]
			size := 1 << (op >> 4 & 3)
			switch op & 3 {
			case 0:
				g.set(reg%0x40, size, v)
			case 1:
				g.set(reg<<8+v&0xff, size, v)
			case 2:
				var b [8]byte
				binary.LittleEndian.PutUint16(b[:], uint16(v))
				g.ConfigWrite(uint16(reg), b[:min(size, 4)])
			case 3:
				g.get(reg<<7, size)
				g.ConfigRead(uint16(reg), make([]byte, min(size, 4)))
			}
		}
	})
}

func (e *echo) Save() (any, error) { return nil, nil }
func (e *echo) Load([]byte) error  { return nil }
