package virtio_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/devices"
	"vmm/internal/loglimit"
	"vmm/virtio"
	"vmm/virtio/virtiotest"
	"vmm/virtio/virtiotest/hostile"
)

// The hostile driver at work: several vCPUs that do to a device what no driver does. What
// is wanted is that the process goes on, that nothing waits for ever, that memory and
// descriptors of the host stay bounded, and that the race detector has nothing to say.

const (
	window    = 0xc0000000 // of the BARs
	barAt     = window + 0x10000
	mmioAt    = 0xfd000000
	attackers = 3

	// mostHeap is what a device may have of the host's memory at any time.
	mostHeap = 256 << 20
)

// othersEvent is where another device has its notifications, which the BAR may be moved to.
var othersEvent = virtio.IOEvent{Address: barAt + 0x10000 + 0x3000, Value: virtio.AnyValue}

// rounds is how many things each vCPU does: VMM_TEST_HOSTILE times as many.
func rounds(t *testing.T) int {
	n := 2000
	if s := os.Getenv("VMM_TEST_HOSTILE"); s != "" {
		times, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal("VMM_TEST_HOSTILE:", err)
		}
		n *= times
	}
	return n
}

// TestHostile lets the hostile driver at every device, by every transport.
func TestHostile(t *testing.T) {
	for _, s := range subjects {
		for _, transport := range []string{"PCI", "MMIO"} {
			t.Run(s.name+"/"+transport, func(t *testing.T) {
				before, heap := openFiles(t), heapSize()
				dev, err := s.device(t)
				if err != nil {
					t.Fatal(err)
				}
				mem, err := virtiotest.NewMemory(hostile.MemorySize)
				if err != nil {
					t.Fatal(err)
				}
				h := newHost(mem)
				h.target = hostile.Target{Bus: h, PCI: transport == "PCI", BAR: barAt, Elsewhere: []uint32{0, 0xffffffff, barAt, barAt + 0x10000, mmioAt},
					Memory: mem.Bytes, Sizes: dev.QueueSizes(), Request: s.request}
				h.connect(dev, transport)
				saved := h.attack(rounds(t))
				if dev, err = s.device(t); err != nil {
					t.Fatal(err)
				}
				twin := newHost(mem)
				if twin.connect(dev, transport); saved != nil {
					if err := twin.dev.Load(saved); err != nil {
						t.Errorf("what was saved is not loaded: %v", err)
					}
				}
				twin.dev.Close()
				if err := mem.Close(); err != nil {
					t.Fatal(err)
				}
				if n := openFiles(t); n != before {
					t.Errorf("%d descriptors are left", n-before)
				}
				if len(h.events) != 1 {
					t.Errorf("of the queues' events there are left %v", h.events)
				}
				if n := heapSize() - heap; n > mostHeap {
					t.Errorf("%d MiB of the host's memory were in use", n>>20)
				}
				if n := h.logged.Load(); n > loglimit.Most+1 {
					t.Errorf("%d lines were logged", n)
				}
				t.Logf("%d things were done, %d times the device wrote to memory, %d interrupts", h.done.Load(), h.mem.written.Load(), h.interrupts.Load())
			})
		}
	}
}

// heapSize is how much memory the heap has had at most so far, in bytes.
func heapSize() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapSys)
}

func openFiles(t *testing.T) int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// hostileMemory counts how often a device writes to it.
type hostileMemory struct {
	*virtiotest.Memory
	written atomic.Int64
}

// MarkDirty implements virtio.Memory.
func (m *hostileMemory) MarkDirty([]byte) { m.written.Add(1) }

// host is a machine around one device.
type host struct {
	mem    *hostileMemory
	target hostile.Target
	dev    virtio.BusDevice
	// Of the transport: writing to a register, and reading from one; of PCI, the bus too.
	write, read func(at uint64, b []byte)
	bus         *devices.PCI

	mu     sync.Mutex
	events map[virtio.IOEvent]int // the device's eventfds

	// running is held by the vCPUs for what they do, and locked while they stand still.
	running sync.RWMutex

	done, interrupts, logged atomic.Int64
}

func newHost(mem *virtiotest.Memory) *host {
	return &host{mem: &hostileMemory{Memory: mem}, events: map[virtio.IOEvent]int{othersEvent: -1}}
}

// connect puts the device on a bus.
func (h *host) connect(dev virtio.Device, transport string) {
	log := func(error) { h.logged.Add(1) }
	if transport == "MMIO" {
		m := virtio.NewMMIO(dev, h.mem, h, mmioAt, h, log)
		h.dev, h.write, h.read = m, m.Write, m.Read
		return
	}
	p := virtio.NewPCI(dev, h.mem, h, log)
	p.Place(barAt, 0, h)
	h.bus = devices.NewPCI()
	h.bus.Add(p)
	w := devices.PCIWindow{PCI: h.bus, Base: window}
	h.dev, h.write, h.read = p, func(at uint64, b []byte) { w.Write(barAt-window+at, b) }, func(at uint64, b []byte) { w.Read(barAt-window+at, b) }
	h.WriteConfig(4, 6, 2)
}

// Set implements devices.IRQ.
func (h *host) Set(on bool) {
	if on {
		h.interrupts.Add(1)
	}
}

// NewMSI implements virtio.Host.
func (h *host) NewMSI() (devices.MSI, error) { return message{h}, nil }

// message counts the messages that a device sends.
type message struct{ h *host }

func (m message) Route(uint64, uint32) error { return nil }
func (m message) Signal()                    { m.h.interrupts.Add(1) }
func (m message) Close() error               { return nil }

// SetIOEvent implements virtio.Host, as KVM does.
func (h *host) SetIOEvent(e virtio.IOEvent, fd int, on bool) error {
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

// Kick implements hostile.Bus: it notifies queues by their eventfds, where there are
// some, as KVM does.
func (h *host) Kick(r *rand.Rand) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.events {
		if one := []byte{1, 0, 0, 0, 0, 0, 0, 0}; fd >= 0 && r.IntN(2) == 0 {
			unix.Write(fd, one)
		}
	}
}

// Yield implements hostile.Bus.
func (h *host) Yield() { runtime.Gosched() }

// function is where the device's PCI configuration space begins.
const function = 1 << 15

// WriteConfig implements hostile.Bus.
func (h *host) WriteConfig(at uint64, v uint32, n int) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	h.bus.Write(function+at, b[:n])
}

// ReadConfig implements hostile.Bus.
func (h *host) ReadConfig(at uint64, n int) uint32 {
	var b [4]byte
	h.bus.Read(function+at, b[:n])
	return binary.LittleEndian.Uint32(b[:])
}

// Write implements hostile.Bus.
func (h *host) Write(at, v uint64, n int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	h.write(at, b[:n])
}

// Read implements hostile.Bus.
func (h *host) Read(at uint64, n int) uint64 {
	var b [8]byte
	h.read(at, b[:n])
	return binary.LittleEndian.Uint64(b[:])
}

// attack has several vCPUs attack, while the host pauses, saves and closes the device. It
// returns what was saved last of a device that was not reset.
func (h *host) attack(n int) (saved *virtio.State) {
	var cpus sync.WaitGroup
	for i := range attackers {
		cpus.Go(func() {
			a := hostile.Attacker{Target: &h.target, ID: uint64(i), Rand: rand.New(rand.NewPCG(uint64(i), 15))}
			for k := range n {
				h.running.RLock()
				a.Do()
				h.running.RUnlock()
				h.done.Add(1)
				if i == 0 && k == n*9/10 { // the others go on
					h.dev.Close()
				}
			}
		})
	}
	stop := make(chan struct{})
	var host sync.WaitGroup
	host.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			before := h.done.Load()
			h.running.Lock()
			h.dev.Suspend()
			if state, err := h.dev.Save(); err == nil && state.Status != 0 {
				saved = state
			} else if err != nil && !errors.Is(err, virtio.ErrMalformed) {
				panic(fmt.Sprint("a suspended device is not saved: ", err))
			}
			h.dev.Resume()
			h.running.Unlock()
			for h.done.Load() < before+50*attackers && h.done.Load() < int64(n*attackers) {
				runtime.Gosched()
			}
		}
	})
	cpus.Wait()
	close(stop)
	host.Wait()
	h.dev.Close()
	return saved
}
