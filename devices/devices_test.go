package devices

import (
	"bytes"
	"sync"
	"testing"
	"time"
)

// line is an interrupt line that remembers its level.
type line struct {
	mu    sync.Mutex
	level bool
	rises int
}

func (l *line) Set(level bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level && !l.level {
		l.rises++
	}
	l.level = level
}

func (l *line) get() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level
}

type port interface {
	In(uint16, []byte)
	Out(uint16, []byte)
}

func in(d port, offset uint16) uint8 {
	var b [1]byte
	d.In(offset, b[:])
	return b[0]
}

func out(d port, offset uint16, v uint8) { d.Out(offset, []byte{v}) }

// lockedBuffer may be written and read at once.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newUART(t *testing.T) (*UART, *line, *lockedBuffer) {
	l, b := &line{}, &lockedBuffer{}
	u := NewUART(l, b)
	t.Cleanup(func() { u.Close() })
	return u, l, b
}

func TestUARTTransmit(t *testing.T) {
	u, l, b := newUART(t)
	out(u, uartMCR, mcrOUT2)
	out(u, uartIER, ierTHRE)
	if !l.get() || in(u, uartIIR) != iirTHRE || l.get() {
		t.Error("turning the THRE interrupt on must raise it, and reading IIR lower it")
	}
	for _, c := range "hello" {
		out(u, uartData, uint8(c))
	}
	u.Flush()
	if b.String() != "hello" || !l.get() {
		t.Errorf("sent %q, interrupt %v", b.String(), l.get())
	}
	if v := in(u, uartLSR); v != lsrTHRE|lsrTEMT {
		t.Errorf("LSR = %#x", v)
	}
}

func TestUARTReceive(t *testing.T) {
	u, l, _ := newUART(t)
	received := make(chan error, 1)
	go func() { received <- u.Receive([]byte("0123456789abcdefghij")) }()
	if in(u, uartLSR)&lsrData != 0 {
		t.Error("data before the guest listens")
	}
	out(u, uartIIR, fcrEnable|2<<6) // trigger at 8
	out(u, uartMCR, mcrOUT2)
	out(u, uartIER, ierRx)
	var got []byte
	for len(got) < 20 {
		if in(u, uartLSR)&lsrData != 0 {
			if iir := in(u, uartIIR) & 0xf; iir != iirRx && iir != iirTimeout {
				t.Fatalf("IIR = %#x with data", iir)
			}
			got = append(got, in(u, uartData))
		}
	}
	if err := <-received; err != nil || string(got) != "0123456789abcdefghij" {
		t.Errorf("got %q, %v", got, err)
	}
	if l.get() {
		t.Error("the line is high with nothing to read")
	}
}

func TestUARTProbe(t *testing.T) {
	u, _, _ := newUART(t)
	out(u, uartIIR, fcrEnable)
	if v := in(u, uartIIR); v != iirFIFO|iirNone {
		t.Errorf("IIR = %#x: not a 16550A", v)
	}
	out(u, uartLCR, lcrDLAB)
	out(u, uartData, 12)
	out(u, uartIER, 3)
	if in(u, uartData) != 12 || in(u, uartIER) != 3 {
		t.Error("the divisor is not kept")
	}
	out(u, uartLCR, 3)
	out(u, uartSCR, 0xa5)
	if in(u, uartSCR) != 0xa5 || in(u, uartLCR) != 3 {
		t.Error("registers are not kept")
	}
	out(u, uartMCR, mcrLoop|mcrOUT2|mcrRTS)
	if v := in(u, uartMSR); v != msrDCD|msrCTS {
		t.Errorf("loopback: MSR = %#x", v)
	}
	out(u, uartData, 'x')
	if in(u, uartData) != 'x' {
		t.Error("loopback: what was sent did not come back")
	}
	if in(u, 9) != 0xff {
		t.Error("a register that does not exist")
	}
}

// blocked is a console that takes nothing until it is told to.
type blocked chan struct{}

func (b blocked) Write(p []byte) (int, error) { <-b; return len(p), nil }

func TestUARTCloseWithBlockedConsole(t *testing.T) {
	b := make(blocked)
	u := NewUART(&line{}, b)
	wrote := make(chan struct{})
	go func() {
		u.Out(uartData, make([]byte, 3*uartBacklog))
		close(wrote)
	}()
	time.Sleep(10 * time.Millisecond)
	select {
	case <-wrote:
		t.Error("the guest was not held back")
	default:
	}
	close(b)
	<-wrote
	u.Close()
	if err := u.Receive([]byte("x")); err == nil {
		t.Error("Receive after Close went well")
	}
}

func TestRTC(t *testing.T) {
	now := time.Date(2026, 11, 24, 13, 5, 9, 0, time.UTC)
	r := NewRTC(func() time.Time { return now })
	read := func(reg uint8) uint8 {
		out(r, 0, reg)
		return in(r, 1)
	}
	for reg, want := range map[uint8]uint8{rtcSeconds: 0x09, rtcMinutes: 0x05, rtcHours: 0x13, rtcDay: 0x24,
		rtcMonth: 0x11, rtcYear: 0x26, RTCCentury: 0x20, rtcWeekday: 3, rtcD: rtcValid, rtcC: 0, rtcA: rtcReset} {
		if got := read(reg); got != want {
			t.Errorf("register %#x = %#x, want %#x", reg, got, want)
		}
	}
	out(r, 0, rtcB)
	out(r, 1, rtcBinary)
	if read(rtcHours) != 0x81 || read(rtcYear) != 26 {
		t.Errorf("binary, 12 hours: %#x", read(rtcHours))
	}
	out(r, 0, rtcB)
	out(r, 1, rtc24)
	out(r, 0, rtcMinutes)
	out(r, 1, 0x30)
	now = now.Add(time.Minute)
	if read(rtcMinutes) != 0x31 || read(rtcHours) != 0x13 {
		t.Errorf("a clock that was set: %x:%x", read(rtcHours), read(rtcMinutes))
	}
	out(r, 0, 0x40)
	out(r, 1, 0x5a)
	if read(0x40) != 0x5a {
		t.Error("CMOS memory is not kept")
	}
}

// pulses counts rising edges.
type pulses struct {
	level bool
	n     int
}

// Set implements IRQ.
func (p *pulses) Set(level bool) {
	if level && !p.level {
		p.n++
	}
	p.level = level
}

func TestPM(t *testing.T) {
	l, off := &line{}, 0
	button := &pulses{}
	p := NewPM(l, button, func() { off++ })
	p.PressPowerButton()
	if button.n != 1 || button.level {
		t.Errorf("the button's interrupt: %+v, want one edge", button)
	}
	if l.get() {
		t.Error("an SCI that is not enabled")
	}
	p.Out(PMEvent+2, []byte{0, 1}) // enable the button
	if !l.get() {
		t.Error("no SCI")
	}
	p.Out(PMEvent, []byte{0, 1}) // and acknowledge it
	if l.get() {
		t.Error("the SCI stays")
	}
	var b [4]byte
	p.In(PMTimer, b[:])
	first := b
	time.Sleep(2 * time.Millisecond)
	if p.In(PMTimer, b[:]); b == first {
		t.Error("the timer stands still")
	}
	p.Out(PMControl, []byte{1, 0})
	if off != 0 {
		t.Error("off without SLP_EN")
	}
	p.Out(PMControl, []byte{0, PMSleepOff<<2 | 1<<5})
	if off != 1 {
		t.Error("not off")
	}
	p.Out(PMSleepControl, []byte{PMSleepOff << 2})
	p.Out(PMSleepControl, []byte{1<<2 | 1<<5})
	if off != 1 {
		t.Error("off without SLP_EN, or in another state than S5")
	}
	p.Out(PMSleepControl, []byte{PMSleepOff<<2 | 1<<5})
	if off != 2 {
		t.Error("not off by the sleep register")
	}
	p.Out(PMPorts+3, []byte{1, 2, 3, 4}) // beyond the block
	p.In(PMPorts+3, b[:])
}

func TestExits(t *testing.T) {
	var got []any
	note := func(v any) func() { return func() { got = append(got, v) } }
	out(&I8042{Reset: note("kbd")}, 4, 0xfe)
	out(&I8042{Reset: note("not")}, 0, 0xfe)
	out(&ResetControl{Reset: note("cf9")}, 0, ResetValue)
	out(&DebugExit{Exit: func(s int) { got = append(got, s) }}, 0, 21)
	out(&PVPanic{Panic: note("panic")}, 0, PanicEvent)
	out(&PVPanic{Panic: note("not")}, 0, CrashLoaded)
	want := []any{"kbd", "cf9", 43, "panic"}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if in(&PVPanic{}, 0) != panicSupport || in(&I8042{}, 4) != 0 {
		t.Error("status")
	}
}

func TestPCI(t *testing.T) {
	p := NewPCI()
	var id [4]byte
	p.Read(0, id[:])
	if id != [4]byte{0x86, 0x80, 0x57, 0x0d} {
		t.Errorf("host bridge: % x", id)
	}
	for _, addr := range []uint64{1 << 15, 1 << 20, 1 << 12, 0xfe, 0x100, 0xffe} { // no device, bus, function; too long; behind the end
		if p.Read(addr, id[:]); id != [4]byte{0xff, 0xff, 0xff, 0xff} {
			t.Errorf("at %#x: % x", addr, id)
		}
	}
	a, d := PCIAddressPort{p}, PCIDataPort{p}
	d.In(0, id[:])
	if id[0] != 0xff {
		t.Error("data without an address")
	}
	a.Out(0, []byte{8, 0, 0, 0x80})
	var class [1]byte
	if d.In(3, class[:]); class[0] != 6 {
		t.Errorf("class %#x", class[0])
	}
	var back [4]byte
	if a.In(0, back[:]); back != [4]byte{8, 0, 0, 0x80} {
		t.Errorf("address % x", back)
	}
	for range 31 {
		if _, err := p.Add(newHostBridge()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Add(newHostBridge()); err != ErrPCIFull {
		t.Errorf("a 33rd device: %v", err)
	}
}

// FuzzUART lets a guest do anything: each pair of bytes is an access.
func FuzzUART(f *testing.F) {
	f.Add([]byte{1, 0xf, 4, 0x1b, 0, 'a', 0x80, 0, 2, 0xc7})
	f.Fuzz(func(t *testing.T, ops []byte) {
		l := &line{}
		u := NewUART(l, &lockedBuffer{})
		defer u.Close()
		for i := 0; i+1 < len(ops); i += 2 {
			if ops[i]&0x80 != 0 {
				in(u, uint16(ops[i]&0x7f))
			} else {
				out(u, uint16(ops[i]), ops[i+1])
			}
			u.mu.Lock()
			want := u.pending() != iirNone && u.mcr&mcrOUT2 != 0
			u.mu.Unlock()
			if l.get() != want {
				t.Fatalf("line %v, pending %v after % x", l.get(), want, ops[:i+2])
			}
		}
	})
}

// BenchmarkUART measures a byte of output.
func BenchmarkUART(b *testing.B) {
	u := NewUART(&line{}, &lockedBuffer{})
	defer u.Close()
	b.ReportAllocs()
	c := []byte{'x'}
	for b.Loop() {
		u.Out(uartData, c)
	}
}

// TestStateIsACopy: neither does a device change a state that it gave or took, nor a
// state the device.
func TestStateIsACopy(t *testing.T) {
	u := NewUART(&line{}, &bytes.Buffer{})
	defer u.Close()
	taken := &UARTState{Receive: []byte("abc")}
	if err := u.Load(taken); err != nil {
		t.Fatal(err)
	}
	given := u.Save()
	in(u, uartData)
	if string(taken.Receive) != "abc" || string(given.Receive) != "abc" {
		t.Errorf("%q and %q", taken.Receive, given.Receive)
	}
	m := NewMSIX(2, nil)
	entries, _ := m.Save()
	m.WriteTable(0, []byte{1, 2, 3, 4})
	if entries[0][0] != 0 {
		t.Error("the guest writes to the saved MSI-X table")
	}
}
