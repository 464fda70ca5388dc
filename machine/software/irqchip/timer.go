package irqchip

import (
	"math"
	"math/bits"
	"time"
)

// minPeriod is the shortest period of a timer, in nanoseconds: a guest must not keep the
// host busy with it (KVM's min_timer_period_us).
const minPeriod = 200_000

// following is when a timer that was to expire at next, and that has the period given,
// expires again: what has been missed by now is left out.
func following(next, period, now int64) int64 {
	return next + period*((now-next)/period+1)
}

// Modes of the timer (SDM, 10.5.4), bits 17 and 18 of its LVT entry.
const (
	timerOneShot  = 0
	timerPeriodic = 1
	timerDeadline = 2
)

func (l *LAPIC) timerMode() uint32 { return l.lvt[lvtTimer] >> 17 & 3 }

// divider is by how much the timer's clock, of 1 GHz, is divided (SDM, 10.5.4,
// "Divide Configuration Register").
func (l *LAPIC) divider() int64 {
	return 1 << (((l.divide&3 | l.divide>>1&4) + 1) & 7)
}

// writeTimer writes the timer's LVT entry. The way of counting and the way of deadlines
// leave nothing for each other.
func (l *LAPIC) writeTimer(v uint32) {
	old := l.timerMode()
	l.lvt[lvtTimer] = v
	mode := l.timerMode()
	if (old == timerDeadline) != (mode == timerDeadline) {
		l.stopTimer()
		l.initial = 0
	} else if mode == timerPeriodic && l.expiry != 0 {
		l.period = max(l.period, minPeriod)
	}
}

func (l *LAPIC) stopTimer() {
	l.expiry, l.period, l.deadline = 0, 0, 0
	l.timer.Stop()
}

// count makes the timer count from a number, in the divided clock.
func (l *LAPIC) count(from uint32) {
	l.stopTimer()
	if l.timerMode() > timerPeriodic || l.initial == 0 {
		return
	}
	l.period = int64(l.initial) * l.divider()
	if l.timerMode() == timerPeriodic {
		l.period = max(l.period, minPeriod)
	}
	left := int64(from) * l.divider()
	if left == 0 {
		if l.timerMode() == timerOneShot {
			return // it has expired
		}
		left = l.period
	}
	l.expiry = l.chips.now() + left
	l.timer.Reset(time.Duration(left))
}

// writeDivide changes the clock of a timer that runs.
func (l *LAPIC) writeDivide(v uint32) {
	left, old := l.current(), l.divider()
	l.divide = v & 0xb
	if l.divider() != old && l.expiry != 0 {
		l.count(left)
	}
}

// current is the current count.
func (l *LAPIC) current() uint32 {
	if l.expiry == 0 {
		return 0
	}
	left := max(l.expiry-l.chips.now(), 0)
	return uint32(min(left/l.divider(), math.MaxUint32))
}

// setDeadline sets IA32_TSC_DEADLINE: 0 is none.
func (l *LAPIC) setDeadline(tsc uint64) {
	l.stopTimer()
	l.deadline = tsc
	l.armDeadline()
}

// armDeadline makes the timer expire at its deadline, or now if that has passed.
func (l *LAPIC) armDeadline() {
	if l.deadline == 0 {
		return
	}
	now := l.chips.tsc() + l.tscOffset
	if now >= l.deadline {
		l.deadline = 0
		l.local(lvtTimer)
		return
	}
	// A millisecond has tscKHz cycles.
	ns := time.Duration(math.MaxInt64)
	if hi, lo := bits.Mul64(l.deadline-now, 1e6); hi < l.chips.tscKHz {
		if q, _ := bits.Div64(hi, lo, l.chips.tscKHz); q < math.MaxInt64 {
			ns = time.Duration(q) + 1
		}
	}
	l.timer.Reset(ns)
}

// tick is called when the timer may have expired.
func (l *LAPIC) tick() {
	var k kicks
	defer l.chips.kick(&k)
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.Wanted()
	l.expire()
	if l.Wanted()&^before != 0 {
		k.add(l)
	}
}

// expire interrupts if the timer has expired.
func (l *LAPIC) expire() {
	if l.timerMode() == timerDeadline {
		l.armDeadline()
		return
	}
	now := l.chips.now()
	switch {
	case l.expiry == 0:
		return
	case now < l.expiry: // it was set anew meanwhile
	case l.timerMode() == timerPeriodic:
		l.expiry = following(l.expiry, l.period, now)
		l.local(lvtTimer)
	default:
		l.expiry = 0
		l.local(lvtTimer)
		return
	}
	l.timer.Reset(time.Duration(l.expiry - now))
}
