package irqchip

import (
	"math/bits"
	"time"

	"vmm/kvm"
)

// The i8254's ports, and the port with what a PC has around it.
const (
	portPIT        = 0x40 // three counters, then the control word
	portPITControl = 0x43
	portSystem     = 0x61 // system control port B
)

func isPITPort(port uint16) bool { return port&^3 == portPIT || port == portSystem }

// Bits of portSystem.
const (
	systemGate    = 1 << 0 // of channel 2
	systemSpeaker = 1 << 1
	systemRefresh = 1 << 4
	systemOut     = 1 << 5 // of channel 2
)

// pitFrequency is the i8254's clock in Hz.
const pitFrequency = 1193182

// pitGSI is the interrupt of channel 0.
const pitGSI = 0

// Modes of a channel (i8254 data sheet, "Mode definitions").
const (
	pitTerminalCount  = 0
	pitOneShot        = 1
	pitRateGenerator  = 2
	pitSquareWave     = 3
	pitSoftwareStrobe = 4
	pitHardwareStrobe = 5
	pitNoMode         = 0xff // before the first control word
)

// How a channel's count is read or written: the access of the control word, and for words
// a second state once the low byte has gone.
const (
	accessLow    = 1
	accessHigh   = 2
	accessWord   = 3
	accessSecond = 4
)

// Flags of kvm.PITState2.
const pitFlagSpeaker = 1 << 1 // KVM_PIT_FLAGS_SPEAKER_DATA_ON

// channel is struct kvm_pit_channel_state.
type channel struct {
	Count         uint32 // 1 to 0x10000
	LatchedCount  uint16
	CountLatched  uint8 // an access, 0 without a latched count
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8 // is told, but the channel counts in binary
	Gate          uint8
	CountLoadTime int64 // in nanoseconds of Chips.now
}

// pit is the i8254. Its methods are called with Chips.mu held.
type pit struct {
	now      func() int64
	channels [3]channel
	speaker  bool

	timer *time.Timer
	next  int64 // when channel 0 interrupts, in nanoseconds of now; 0 for never
}

func (p *pit) reset(c *Chips) {
	p.now = c.now
	p.timer = c.newTimer(c.tickPIT)
	for i := range p.channels {
		p.channels[i] = channel{Mode: pitNoMode, Gate: 1}
		p.load1(i, 0)
	}
	p.channels[2].Gate = 0
}

func (p *pit) save() (s kvm.PITState2) {
	for i := range p.channels {
		s.Channels[i] = p.channels[i]
	}
	if p.speaker {
		s.Flags |= pitFlagSpeaker
	}
	return s
}

func (p *pit) load(s *kvm.PITState2) {
	p.speaker = s.Flags&pitFlagSpeaker != 0
	for i := range p.channels {
		ch := channel(s.Channels[i])
		ch.RWMode &= 3
		ch.ReadState, ch.WriteState, ch.CountLatched = min(ch.ReadState, accessSecond), min(ch.WriteState, accessSecond), min(ch.CountLatched, accessWord)
		if ch.Mode > pitHardwareStrobe {
			ch.Mode = pitNoMode
		}
		p.channels[i] = ch
		p.load1(i, uint16(ch.Count)) // 0x10000 is 0
	}
}

// load1 makes a channel count from a number; 0 stands for 0x10000.
func (p *pit) load1(i int, count uint16) {
	ch := &p.channels[i]
	if ch.Count = uint32(count); count == 0 {
		ch.Count = 0x10000
	}
	ch.CountLoadTime = p.now()
	if i == 0 {
		p.arm()
	}
}

// arm makes channel 0 interrupt in time for its new count.
func (p *pit) arm() {
	ch := &p.channels[0]
	if ch.Mode > pitSoftwareStrobe {
		p.next = 0
		p.timer.Stop()
		return
	}
	p.next = ch.CountLoadTime + p.period()
	p.timer.Reset(time.Duration(p.next - p.now()))
}

// period is how long channel 0 counts, in nanoseconds.
func (p *pit) period() int64 {
	ch := &p.channels[0]
	ns := int64(ch.Count) * 1e9 / pitFrequency
	if ch.periodic() {
		return max(ns, minPeriod)
	}
	return ns
}

func (ch *channel) periodic() bool {
	return ch.Mode == pitRateGenerator || ch.Mode == pitSquareWave
}

// tickPIT is called when p.next has come.
func (c *Chips) tickPIT() {
	var k kicks
	defer c.kick(&k)
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.pit
	now := p.now()
	if p.next == 0 {
		return
	}
	if now < p.next { // it was set anew meanwhile
		p.timer.Reset(time.Duration(p.next - now))
		return
	}
	c.pulse(pitGSI, &k)
	if !p.channels[0].periodic() {
		p.next = 0
		return
	}
	p.next = following(p.next, p.period(), now)
	p.timer.Reset(time.Duration(p.next - now))
}

// ticks is how often a channel's clock has ticked since it was loaded.
func (ch *channel) ticks(now int64) uint64 {
	hi, lo := bits.Mul64(uint64(max(now-ch.CountLoadTime, 0)), pitFrequency)
	q, _ := bits.Div64(hi, lo, 1e9)
	return q
}

// value is what the counter has come to.
func (ch *channel) value(now int64) uint16 {
	t, n := ch.ticks(now), uint64(ch.Count)
	switch ch.Mode {
	case pitTerminalCount, pitOneShot, pitSoftwareStrobe, pitHardwareStrobe:
		return uint16(n - t)
	case pitSquareWave:
		return uint16(n - 2*t%n)
	}
	return uint16(n - t%n)
}

// out is the level of a channel's output.
func (ch *channel) out(now int64) bool {
	t, n := ch.ticks(now), uint64(ch.Count)
	switch ch.Mode {
	case pitOneShot:
		return t < n
	case pitRateGenerator:
		return t%n == 0 && t != 0
	case pitSquareWave:
		return t%n < (n+1)/2
	case pitSoftwareStrobe, pitHardwareStrobe:
		return t == n
	}
	return t >= n
}

// setGate is a new level of channel 2's gate: in the modes where that counts, a rising
// edge begins anew.
func (p *pit) setGate(level bool) {
	ch := &p.channels[2]
	var gate uint8
	if level {
		gate = 1
	}
	if gate > ch.Gate && ch.Mode != pitTerminalCount && ch.Mode != pitSoftwareStrobe {
		ch.CountLoadTime = p.now()
	}
	ch.Gate = gate
}

func (p *pit) read(port uint16) uint8 {
	switch port {
	case portSystem:
		v := p.channels[2].Gate & systemGate
		if p.speaker {
			v |= systemSpeaker
		}
		now := p.now()
		if now>>14&1 != 0 { // memory is refreshed all 15 us
			v |= systemRefresh
		}
		if p.channels[2].out(now) {
			v |= systemOut
		}
		return v
	case portPITControl:
		return 0
	}
	return p.channels[port-portPIT].read(p.now())
}

func (ch *channel) read(now int64) uint8 {
	if ch.StatusLatched != 0 {
		ch.StatusLatched = 0
		return ch.Status
	}
	switch ch.CountLatched {
	case accessLow:
		ch.CountLatched = 0
		return uint8(ch.LatchedCount)
	case accessHigh:
		ch.CountLatched = 0
		return uint8(ch.LatchedCount >> 8)
	case accessWord:
		ch.CountLatched = accessHigh
		return uint8(ch.LatchedCount)
	}
	v := ch.value(now)
	switch ch.ReadState {
	case accessHigh:
		return uint8(v >> 8)
	case accessWord:
		ch.ReadState = accessSecond
	case accessSecond:
		ch.ReadState = accessWord
		return uint8(v >> 8)
	}
	return uint8(v)
}

func (p *pit) write(port uint16, v uint8) {
	switch port {
	case portSystem:
		p.speaker = v&systemSpeaker != 0
		p.setGate(v&systemGate != 0)
	case portPITControl:
		p.control(v)
	default:
		p.writeCount(int(port-portPIT), v)
	}
}

// control takes a control word: of a channel, or the read-back command.
func (p *pit) control(v uint8) {
	const readBack, noCount, noStatus = 3, 1 << 5, 1 << 4
	now := p.now()
	if v>>6 == readBack {
		for i := range p.channels {
			if v>>(i+1)&1 == 0 {
				continue
			}
			if v&noCount == 0 {
				p.channels[i].latchCount(now)
			}
			if v&noStatus == 0 {
				p.channels[i].latchStatus(now)
			}
		}
		return
	}
	ch := &p.channels[v>>6]
	access := v >> 4 & 3
	if access == 0 {
		ch.latchCount(now)
		return
	}
	ch.RWMode, ch.ReadState, ch.WriteState = access, access, access
	if ch.Mode = v >> 1 & 7; ch.Mode > pitHardwareStrobe {
		ch.Mode -= 4 // 6 and 7 are 2 and 3
	}
	ch.BCD = v & 1
}

func (ch *channel) latchCount(now int64) {
	if ch.CountLatched == 0 {
		ch.LatchedCount, ch.CountLatched = ch.value(now), ch.RWMode
	}
}

func (ch *channel) latchStatus(now int64) {
	if ch.StatusLatched != 0 {
		return
	}
	ch.Status = ch.RWMode<<4 | ch.Mode<<1 | ch.BCD
	if ch.out(now) {
		ch.Status |= 1 << 7
	}
	ch.StatusLatched = 1
}

func (p *pit) writeCount(i int, v uint8) {
	ch := &p.channels[i]
	switch ch.WriteState {
	default:
		p.load1(i, uint16(v))
	case accessHigh:
		p.load1(i, uint16(v)<<8)
	case accessWord:
		ch.WriteLatch, ch.WriteState = v, accessSecond
	case accessSecond:
		ch.WriteState = accessWord
		p.load1(i, uint16(v)<<8|uint16(ch.WriteLatch))
	}
}
