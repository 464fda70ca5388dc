package irqchip

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"vmm/internal/x86"
)

// ticks is how often an interrupt comes in a time.
func ticks(t *testing.T, l *LAPIC, during time.Duration) (n int) {
	t.Helper()
	const step = 50 * time.Microsecond
	for range during / step {
		time.Sleep(step)
		synctest.Wait()
		if take(l) >= 0 {
			write32(l, regEOI, 0)
			n++
		}
	}
	return n
}

func TestTimer(t *testing.T) {
	for _, c := range []struct {
		name   string
		lvt    uint32
		divide uint32
		count  uint32
		want   int // in 10 ms
	}{
		{"one shot, divided by 1", 0x40, 0xb, 1_000_000, 1},
		{"periodic", 0x40 | timerPeriodic<<17, 0xb, 1_000_000, 10},
		{"periodic, divided by 2", 0x40 | timerPeriodic<<17, 0, 1_000_000, 5},
		{"periodic, divided by 128", 0x40 | timerPeriodic<<17, 0xa, 10_000, 7},
		{"periodic, not too often", 0x40 | timerPeriodic<<17, 0xb, 1, 50},
		{"masked", 0x40 | lvtMasked, 0xb, 1_000_000, 0},
		{"no count", 0x40, 0xb, 0, 0},
		{"reserved mode", 0x40 | 3<<17, 0xb, 1000, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, apics := newTestChips(t, 1)
			l := apics[0]
			write32(l, regLVT, c.lvt)
			write32(l, regDivide, c.divide)
			write32(l, regInitial, c.count)
			expect(t, c.name, ticks(t, l, 10*time.Millisecond), c.want)
		})
	}
}

func TestCurrentCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, apics := newTestChips(t, 1)
		l := apics[0]
		write32(l, regLVT, 0x40)
		write32(l, regDivide, 0xb)
		write32(l, regInitial, 1_000_000)
		time.Sleep(400 * time.Microsecond)
		expect(t, "current", int(read32(l, regCurrent)), 600_000)
		write32(l, regDivide, 0) // from now on half as fast
		expect(t, "current, divided", int(read32(l, regCurrent)), 600_000)
		time.Sleep(600 * time.Microsecond)
		expect(t, "current, later", int(read32(l, regCurrent)), 300_000)
		s := l.State() // goes on there in a new one
		write32(l, regInitial, 0)
		_, others := newTestChips(t, 1)
		o := others[0]
		if err := o.SetState(&s); err != nil {
			t.Fatal(err)
		}
		expect(t, "current, restored", int(read32(o, regCurrent)), 300_000)
		expect(t, "ticks of the restored", ticks(t, o, 2*time.Millisecond), 1)
		expect(t, "current in the end", int(read32(o, regCurrent)), 0)
		expect(t, "ticks of the stopped", ticks(t, l, 2*time.Millisecond), 0)
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, apics := newTestChips(t, 1)
		l := apics[0]
		deadline := func() int {
			v, _ := l.ReadMSR(x86.MSRTSCDeadline)
			return int(v)
		}
		l.WriteMSR(x86.MSRTSCDeadline, 1000)
		expect(t, "no deadline in another mode", deadline(), 0)
		write32(l, regLVT, 0x40|timerDeadline<<17)
		l.WriteMSR(x86.MSRTSCDeadline, c.tsc()+testTSCKHz) // a millisecond
		write32(l, regInitial, 1000)
		expect(t, "no count in this mode", int(read32(l, regInitial)), 0)
		expect(t, "before it", ticks(t, l, 900*time.Microsecond), 0)
		expect(t, "after it", ticks(t, l, 500*time.Microsecond), 1)
		expect(t, "the deadline is gone", deadline(), 0)
		l.WriteMSR(x86.MSRTSCDeadline, 1)
		expect(t, "a past one", take(l), 0x40)
		write32(l, regEOI, 0)
		l.WriteMSR(x86.MSRTSCDeadline, math.MaxUint64)
		expect(t, "a far one", ticks(t, l, time.Millisecond), 0)
		l.WriteMSR(x86.MSRTSCDeadline, c.tsc()+2*testTSCKHz)
		l.SetTSCOffset(testTSCKHz)
		expect(t, "this CPU's TSC is ahead", ticks(t, l, 1100*time.Microsecond), 1)
		l.WriteMSR(x86.MSRTSCDeadline, c.tsc()+3*testTSCKHz)
		write32(l, regLVT, 0x40)
		expect(t, "the mode left", deadline(), 0)
	})
}

func TestPIT(t *testing.T) {
	for _, c := range []struct {
		name    string
		control byte
		count   uint16
		want    int // ticks in 100 ms
	}{
		{"terminal count", 0x30, 11900, 1},
		{"rate generator", 0x34, 11900, 10},
		{"square wave", 0x36, 11900, 10},
		{"square wave, mode 7", 0x3e, 11900, 10},
		{"software strobe", 0x38, 11900, 1},
		{"hardware strobe: its gate never rises", 0x3a, 11900, 0},
		{"rate generator, 65536", 0x34, 0, 1},
		{"rate generator, not too often", 0x34, 1, 500},
	} {
		synctest.Test(t, func(t *testing.T) {
			chips, apics := newTestChips(t, 1)
			l := apics[0]
			write32(l, regLVT+lvtLINT0*16, lvtMasked)
			chips.redirectPin(0, 0x40)
			chips.out(portPITControl, c.control)
			chips.out(portPIT, byte(c.count), byte(c.count>>8))
			expect(t, c.name, ticks(t, l, 100*time.Millisecond), c.want)
		})
	}
}

func TestPITCounters(t *testing.T) {
	word := func(c *Chips, port uint16) int { return int(c.in(port)) | int(c.in(port))<<8 }
	synctest.Test(t, func(t *testing.T) {
		c, _ := newTestChips(t, 1)
		c.out(portSystem, 1)
		c.out(portPITControl, 0xb0) // channel 2, a word, terminal count
		c.out(portPIT+2, 0x00, 0x10)
		c.out(portPITControl, 0x80) // latch
		time.Sleep(time.Millisecond)
		expect(t, "latched", word(c, portPIT+2), 0x1000)
		expect(t, "later", word(c, portPIT+2), 0x1000-1193)
		expect(t, "out", int(c.in(portSystem)&systemOut), 0)
		c.out(portPITControl, 0xe8) // read back the status of channel 2
		expect(t, "status", int(c.in(portPIT+2)), 0x30)
		time.Sleep(10 * time.Millisecond)
		expect(t, "out at the end", int(c.in(portSystem)&systemOut), systemOut)
		c.out(portPITControl, 0xc8) // status and count
		expect(t, "status at the end", int(c.in(portPIT+2)), 0xb0)
		expect(t, "count behind it", word(c, portPIT+2), (0x1000-13125)&0xffff)

		c.out(portPITControl, 0xb2) // one shot: begins with the gate
		c.out(portPIT+2, 0x00, 0x10)
		time.Sleep(10 * time.Millisecond)
		c.out(portSystem, 0)
		c.out(portSystem, 1)
		expect(t, "one shot", word(c, portPIT+2), 0x1000)

		c.out(portPITControl, 0x94) // low byte only, rate generator
		c.out(portPIT+2, 200)
		expect(t, "low byte", int(c.in(portPIT+2)), 200)
		c.out(portPITControl, 0xa6) // high byte only, square wave
		c.out(portPIT+2, 2)
		time.Sleep(100 * time.Microsecond) // 119 ticks, two at once
		expect(t, "high byte", int(c.in(portPIT+2)), (512-238)>>8)
		c.out(portSystem, systemSpeaker)
		expect(t, "speaker", int(c.in(portSystem)&3), systemSpeaker)
		expect(t, "control", int(c.in(portPITControl)), 0)
	})
}

// TestClose: nobody is kicked after it.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, apics := newTestChips(t, 1)
		write32(apics[0], regLVT, 0x40|timerPeriodic<<17)
		write32(apics[0], regInitial, 1_000_000)
		c.out(portPITControl, 0x34)
		c.out(portPIT, 0, 1)
		c.Close()
		time.Sleep(time.Second)
		if n := apics[0].cpu.(*testCPU).kicks.Load(); n != 0 {
			t.Errorf("%d kicks", n)
		}
		write32(apics[0], regInitial, 1_000_000) // a CPU that has not seen the end
		time.Sleep(time.Second)
		if n := apics[0].cpu.(*testCPU).kicks.Load(); n != 0 {
			t.Errorf("%d kicks by a timer that was set later", n)
		}
		c.Close()
	})
}
