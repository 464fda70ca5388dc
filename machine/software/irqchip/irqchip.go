// Package irqchip emulates the interrupt chips of a PC: two 8259A, an I/O APIC with 24
// pins, an i8254, and the local APICs of the CPUs. They are the chips that KVM has in the
// kernel, with its versions, its clocks and its structures of state, so that a machine may
// go on with the other ones.
//
// Where KVM does otherwise than the manuals, these do as the manuals say:
//
//   - 8259A: ICW1 ends what is in service, and until the last ICW no interrupt comes. A poll is an
//     acknowledgement, and says in bit 7 whether there was an interrupt. Special mask mode
//     holds for priorities and for EOIs without a number.
//   - I/O APIC: a level that nobody has taken leaves no remote IRR. An EOI is for all pins with
//     its vector, whomever they lead to, and sends no edges again.
//   - Local APIC: the ESR has errors, and illegal vectors are neither sent nor taken. What is
//     read-only in the LVT, and the ID, cannot be written. The lowest priority is one of the APICs
//     that are there and enabled. EOIs of x2APIC mode are zeros.
//   - i8254: ticks that nobody has taken are not made up for.
//
// A CPU asks its LAPIC, often, what there is for it, and is kicked when there is
// something new. All else may be called from any goroutine.
//
// "SDM" is Intel's manual for software developers, volume 3.
package irqchip

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vmm/kvm"
)

// MaxCPUs is how many CPUs there can be: APIC ID 255 is the broadcast's.
const MaxCPUs = 255

// CPU is what a local APIC tells its CPU.
type CPU interface {
	// Kick says that LAPIC.Wanted tells something new. It is called from any goroutine,
	// without the chips' locks, and must not block. What a CPU did itself it is not
	// always kicked for: it looks at Wanted after each access to its LAPIC anyway.
	Kick()
}

// Chips are the interrupt chips of one machine. Close them in the end.
type Chips struct {
	tsc    func() uint64
	tscKHz uint64
	start  time.Time

	routes atomic.Pointer[routes]
	apics  atomic.Pointer[[]*LAPIC] // by ID, nil where there is none; never changed in place
	intr   atomic.Bool              // the 8259As' output, at LINT0 of all local APICs

	mu     sync.Mutex // of what follows; taken before any LAPIC's
	pics   pics
	ioapic ioapic
	pit    pit

	life   sync.RWMutex // timers run in its read lock
	closed bool
}

// New makes the chips of a machine without CPUs. tsc is the guest's time-stamp counter
// without what a CPU adds to it, with tscKHz cycles a millisecond.
func New(tsc func() uint64, tscKHz uint64) *Chips {
	c := &Chips{tsc: tsc, tscKHz: max(tscKHz, 1), start: time.Now()}
	c.apics.Store(&[]*LAPIC{})
	c.routes.Store(defaultRoutes())
	c.pics.reset()
	c.ioapic.reset()
	c.pit.reset(c)
	return c
}

// AddCPU makes the local APIC of a CPU, as it is after a reset; id is the APIC ID,
// below MaxCPUs. CPU 0 is the one that boots.
func (c *Chips) AddCPU(id int, cpu CPU) *LAPIC {
	l := newLAPIC(c, uint32(id), cpu)
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.apics.Load()
	apics := make([]*LAPIC, max(len(old), id+1))
	copy(apics, old)
	apics[id] = l
	c.apics.Store(&apics)
	return l
}

// HasCPU reports whether there is the local APIC of a CPU.
func (c *Chips) HasCPU(id int) bool {
	apics := *c.apics.Load()
	return id < len(apics) && apics[id] != nil
}

// Close stops the timers. It returns when none is running, so that they kick nobody
// after it.
func (c *Chips) Close() {
	c.life.Lock()
	c.closed = true
	c.life.Unlock()
	c.pit.timer.Stop()
	for _, l := range *c.apics.Load() {
		if l != nil {
			l.timer.Stop()
		}
	}
}

// newTimer returns a timer that calls f once for each Reset, until Close.
func (c *Chips) newTimer(f func()) *time.Timer {
	const never = 1 << 62
	return time.AfterFunc(never, func() {
		c.life.RLock()
		defer c.life.RUnlock()
		if !c.closed {
			f()
		}
	})
}

// now is the time of the chips' clocks, in nanoseconds.
func (c *Chips) now() int64 { return int64(time.Since(c.start)) }

// kicks is a set of CPUs, by APIC ID, that are to be kicked once no lock is held.
type kicks [(MaxCPUs + 63) / 64]uint64

func (k *kicks) add(l *LAPIC) { k[l.id/64] |= 1 << (l.id % 64) }

// kick kicks them.
func (c *Chips) kick(k *kicks) {
	for i, w := range k {
		for ; w != 0; w &= w - 1 {
			(*c.apics.Load())[i*64+bits.TrailingZeros64(w)].cpu.Kick()
		}
	}
}

// Port answers an access to a port of the 8259As or the i8254, which have eight bits each:
// an 8259A ignores wider accesses, the i8254 takes the lowest byte. ok is false if the port is
// none of theirs.
func (c *Chips) Port(port uint16, data []byte, write bool) (ok bool) {
	if len(data) == 0 {
		return false
	}
	var k kicks
	defer c.kick(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	v := data[0]
	if !write {
		clear(data)
	}
	switch {
	case isPICPort(port) && len(data) != 1:
	case isPICPort(port) && write:
		c.pics.write(port, v)
		c.updatePICs(&k)
	case isPICPort(port):
		data[0] = c.pics.read(port)
		c.updatePICs(&k)
	case isPITPort(port) && write:
		c.pit.write(port, v)
	case isPITPort(port):
		data[0] = c.pit.read(port)
	default:
		return false
	}
	return true
}

// MMIO answers an access to the I/O APIC's registers. ok is false if gpa is none of
// their addresses.
func (c *Chips) MMIO(gpa uint64, data []byte, write bool) (ok bool) {
	if gpa-ioapicBase >= ioapicSize {
		return false
	}
	var k kicks
	defer c.kick(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	var buf [8]byte
	if write {
		copy(buf[:], data)
		c.ioapic.write(c, uint32(gpa-ioapicBase), binary.LittleEndian.Uint32(buf[:]), &k)
		return true
	}
	binary.LittleEndian.PutUint32(buf[:], c.ioapic.read(uint32(gpa-ioapicBase)))
	clear(data)
	copy(data, buf[:])
	return true
}

// Chip returns the state of a chip as KVM_GET_IRQCHIP has it: kvm.IRQChipPICMaster,
// IRQChipPICSlave or IRQChipIOAPIC. The error for another is syscall.EINVAL.
func (c *Chips) Chip(id uint32) (*kvm.IRQChip, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &kvm.IRQChip{ChipID: id}
	var err error
	switch id {
	case kvm.IRQChipPICMaster, kvm.IRQChipPICSlave:
		_, err = binary.Encode(out.State[:], binary.LittleEndian, c.pics[id].picState)
	case kvm.IRQChipIOAPIC:
		_, err = binary.Encode(out.State[:], binary.LittleEndian, c.ioapic.save())
	default:
		err = fmt.Errorf("KVM_GET_IRQCHIP: no chip %d: %w", id, syscall.EINVAL)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// SetChip makes a chip what Chip has told. The error for one that there is not is
// syscall.EINVAL.
func (c *Chips) SetChip(s *kvm.IRQChip) error {
	var k kicks
	defer c.kick(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s.ChipID {
	case kvm.IRQChipPICMaster, kvm.IRQChipPICSlave:
		p := &c.pics[s.ChipID]
		if _, err := binary.Decode(s.State[:], binary.LittleEndian, &p.picState); err != nil {
			return err
		}
		p.sanitize(s.ChipID)
		c.updatePICs(&k)
	case kvm.IRQChipIOAPIC:
		var st ioapicState
		if _, err := binary.Decode(s.State[:], binary.LittleEndian, &st); err != nil {
			return err
		}
		c.ioapic.load(c, &st, &k)
	default:
		return fmt.Errorf("KVM_SET_IRQCHIP: no chip %d: %w", s.ChipID, syscall.EINVAL)
	}
	return nil
}

// PIT returns the i8254's state as KVM_GET_PIT2 has it, but for CountLoadTime, which counts
// from New.
func (c *Chips) PIT() kvm.PITState2 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pit.save()
}

// SetPIT makes the i8254 what PIT has told. Its counters begin anew.
func (c *Chips) SetPIT(s *kvm.PITState2) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pit.load(s)
}
