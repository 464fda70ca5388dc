package devices

import (
	"sync"
	"time"
)

// RTC is the MC146818 clock with its CMOS memory: the host's time in UTC. The
// guest may set it; the difference is kept. It raises no interrupts.
type RTC struct {
	mu     sync.Mutex
	index  uint8
	cmos   [128]uint8
	offset time.Duration
	now    func() time.Time
}

// RTCPorts is how many ports the device has.
const RTCPorts = 2

// CMOS registers.
const (
	rtcSeconds = 0x00
	rtcMinutes = 0x02
	rtcHours   = 0x04
	rtcWeekday = 0x06
	rtcDay     = 0x07
	rtcMonth   = 0x08
	rtcYear    = 0x09
	rtcA       = 0x0a
	rtcB       = 0x0b
	rtcC       = 0x0c
	rtcD       = 0x0d

	// RTCCentury is where the FADT tells the guest to find the century.
	RTCCentury = 0x32
)

// Bits of register B, and the values at reset.
const (
	rtcBinary = 1 << 2
	rtc24     = 1 << 1
	rtcReset  = 0x26 // A: 32.768 kHz base, 1024 Hz rate
	rtcValid  = 0x80 // D: the battery is good
)

// NewRTC returns a clock that shows what now returns.
func NewRTC(now func() time.Time) *RTC {
	r := &RTC{now: now}
	r.cmos[rtcA], r.cmos[rtcB] = rtcReset, rtc24
	return r
}

// In reads the selected register at offset 1.
func (r *RTC) In(offset uint16, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	FillOnes(data)
	if offset == 1 && len(data) > 0 {
		data[0] = r.read(r.index)
	}
}

func (r *RTC) read(i uint8) uint8 {
	t := r.now().Add(r.offset).UTC()
	switch i {
	case rtcSeconds:
		return r.encode(t.Second())
	case rtcMinutes:
		return r.encode(t.Minute())
	case rtcHours:
		h := t.Hour()
		if r.cmos[rtcB]&rtc24 == 0 {
			if v := r.encode((h+11)%12 + 1); h >= 12 {
				return v | 0x80
			} else {
				return v
			}
		}
		return r.encode(h)
	case rtcWeekday:
		return r.encode(int(t.Weekday()) + 1)
	case rtcDay:
		return r.encode(t.Day())
	case rtcMonth:
		return r.encode(int(t.Month()))
	case rtcYear:
		return r.encode(t.Year() % 100)
	case RTCCentury:
		return r.encode(t.Year() / 100)
	case rtcC:
		return 0
	case rtcD:
		return rtcValid
	}
	return r.cmos[i]
}

// encode writes a number in binary or BCD, as register B says.
func (r *RTC) encode(n int) uint8 {
	if r.cmos[rtcB]&rtcBinary != 0 {
		return uint8(n)
	}
	return uint8(n/10<<4 | n%10)
}

func (r *RTC) decode(v uint8) int {
	if r.cmos[rtcB]&rtcBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&15)
}

// Out selects a register at offset 0 and writes it at offset 1.
func (r *RTC) Out(offset uint16, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(data) == 0 {
		return
	}
	if offset == 0 {
		r.index = data[0] & 0x7f
		return
	}
	r.write(r.index, data[0])
}

func (r *RTC) write(i, v uint8) {
	n := r.decode(v)
	t := r.now().Add(r.offset).UTC()
	y, mo, d := t.Date()
	h, mi, s := t.Clock()
	switch i {
	case rtcSeconds:
		s = n
	case rtcMinutes:
		mi = n
	case rtcHours:
		h = n // Linux sets it in 24-hour mode
	case rtcDay:
		d = n
	case rtcMonth:
		mo = time.Month(n)
	case rtcYear:
		y = y/100*100 + n
	case RTCCentury:
		y = n*100 + y%100
	case rtcA, rtcB, rtcC, rtcD, rtcWeekday:
		r.cmos[i] = v
		return
	default:
		r.cmos[i] = v
		return
	}
	r.offset += time.Date(y, mo, d, h, mi, s, t.Nanosecond(), time.UTC).Sub(t)
}
