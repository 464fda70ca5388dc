package gdb

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/kvm"
	"vmm/machine"
)

// fake is a target of two CPUs and a page of memory.
type fake struct {
	regs    [2]kvm.Regs
	memory  [4096]byte
	breaks  map[machine.Breakpoint]bool
	stops   chan machine.DebugEvent
	resumed []int
	detach  bool
	ended   bool // which it says when it is interrupted
}

const fakeBase = 0x1000

func newFake() *fake {
	f := &fake{breaks: map[machine.Breakpoint]bool{}, stops: make(chan machine.DebugEvent, 4)}
	f.regs[0].RAX, f.regs[1].RIP = 0x1122334455667788, 0xffffffff81000000
	return f
}

func (f *fake) Attach() error            { return nil }
func (f *fake) Detach()                  { f.detach = true }
func (f *fake) CPUs() int                { return 2 }
func (f *fake) Resume(step int) error    { f.resumed = append(f.resumed, step); return nil }
func (f *fake) Wait() machine.DebugEvent { return <-f.stops }
func (f *fake) Interrupt() {
	e := machine.DebugEvent{Reason: machine.StopInterrupted}
	if f.ended {
		e.Reason = machine.StopEnded
	}
	select {
	case f.stops <- e:
	default:
	}
}
func (f *fake) Registers(cpu int) (kvm.Regs, kvm.Sregs, error) {
	return f.regs[cpu], kvm.Sregs{CR3: 0x5000}, nil
}
func (f *fake) SetRegisters(cpu int, r kvm.Regs) error { f.regs[cpu] = r; return nil }
func (f *fake) at(addr uint64, b []byte) ([]byte, error) {
	if addr < fakeBase || addr >= fakeBase+4096 {
		return nil, errors.New("nothing there")
	}
	m := f.memory[addr-fakeBase:]
	return m[:min(len(b), len(m))], nil
}
func (f *fake) ReadMemory(_ int, addr uint64, to []byte) (int, error) {
	m, err := f.at(addr, to)
	return copy(to, m), err
}
func (f *fake) WriteMemory(_ int, addr uint64, from []byte) (int, error) {
	m, err := f.at(addr, from)
	return copy(m, from), err
}
func (f *fake) SetBreakpoint(_ int, b machine.Breakpoint) error {
	if len(f.breaks) == 2 {
		return errors.New("no more, of #2")
	}
	f.breaks[b] = true
	return nil
}
func (f *fake) ClearBreakpoint(b machine.Breakpoint) error { delete(f.breaks, b); return nil }

// client is gdb's side.
type client struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func (c *client) send(body string) {
	sum := byte(0)
	for _, b := range []byte(body) {
		sum += b
	}
	fmt.Fprintf(c.c, "$%s#%02x", body, sum)
}

func (c *client) receive() string {
	c.t.Helper()
	l := link{r: c.r, w: c.c, interrupted: func() {}}
	s, err := l.receive()
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *client) ask(body string) string {
	c.t.Helper()
	c.send(body)
	return c.receive()
}

func start(t *testing.T) (*client, *fake, chan error) {
	f := newFake()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(b, f, func() {}) }()
	t.Cleanup(func() { a.Close() })
	return &client{t, a, bufio.NewReader(a)}, f, done
}

func TestServe(t *testing.T) {
	c, f, done := start(t)
	if s := c.ask("qSupported:swbreak+;hwbreak+"); !strings.Contains(s, "qXfer:features:read+") {
		t.Errorf("qSupported: %s", s)
	}
	var xml string
	for {
		s := c.ask(fmt.Sprintf("qXfer:features:read:target.xml:%x,400", len(xml)))
		if xml += s[1:]; s[0] == 'l' {
			break
		}
	}
	if xml != targetXML() {
		t.Error("the description is not what it should be")
	}
	for _, x := range []struct{ ask, want string }{
		{"?", "T05thread:1;"},
		{"qfThreadInfo", "m1,2"}, {"qsThreadInfo", "l"}, {"qC", "QC1"}, {"T2", "OK"}, {"T3", "E01"}, {"Hg3", "E01"}, {"Hc-1", "OK"},
		{"qThreadExtraInfo,2", hex.EncodeToString([]byte("CPU 1"))},
		{"p0", "8877665544332211"}, {"Hg2", "OK"}, {"p10", "000000" + "81ffffffff"}, {"P0=0100000000000000", "OK"}, {"p0", "0100000000000000"},
		{"P12=00", "E01"}, {"pffff", "E01"},
		{"M1000,3:414243", "OK"}, {"m1000,4", "41424300"}, {"X1003,2:}\x03x", "OK"}, {"m1003,2", "2378"},
		{"m1ffe,10", "0000"}, {"m5000,1", "E01"}, {"mxyz", "E01"}, {"M1000,5:41", "E01"},
		{"Z0,1010,1", "OK"}, {"z0,1010,1", "OK"}, {"Z1,ffffffff81000000,1", "OK"},
		{"Z2,1010,18", "OK"}, {"Z4,1010,4", "E.no more, of #2"}, {"z2,1010,18", "OK"}, {"Z4,1010,4", "OK"}, {"Z3,1010,4", ""}, {"z3,1010,4", ""},
		{"Z5,1010,4", ""}, {"Z2,1010", "E01"}, {"Z", ""}, {"vMustReplyEmpty", ""}, {"!", ""},
	} {
		if got := c.ask(x.ask); got != x.want {
			t.Errorf("%q: %q, want %q", x.ask, got, x.want)
		}
	}
	if !f.breaks[machine.Breakpoint{Kind: machine.BreakHardware, Addr: 0xffffffff81000000}] ||
		!f.breaks[machine.Breakpoint{Kind: machine.BreakAccess, Addr: 0x1010, Len: 4}] || len(f.breaks) != 2 {
		t.Errorf("breakpoints %v", f.breaks)
	}
	g := c.ask("g")
	if len(g) != 2*(16*8+8+4+6*4+8*10+8*4+2*8+5*8) {
		t.Errorf("all registers are %d digits", len(g))
	}
	if s := c.ask("G" + g[:32]); s != "OK" {
		t.Errorf("G: %s", s)
	}

	c.send("vCont;s:2;c")
	f.stops <- machine.DebugEvent{CPU: 1, Reason: machine.StopStep}
	if s := c.receive(); s != "T05thread:2;" {
		t.Errorf("after a step: %s", s)
	}
	for _, x := range []struct {
		hit  machine.Breakpoint
		want string
	}{
		{machine.Breakpoint{Kind: machine.BreakSoftware}, "T05thread:1;swbreak:;"},
		{machine.Breakpoint{Kind: machine.BreakHardware}, "T05thread:1;hwbreak:;"},
		{machine.Breakpoint{Kind: machine.BreakWrite, Addr: 0x1010, Len: 24}, "T05thread:1;watch:1018;"},
		{machine.Breakpoint{Kind: machine.BreakAccess, Addr: 0x1010, Len: 24}, "T05thread:1;awatch:1018;"},
	} {
		c.send("vCont;c")
		f.stops <- machine.DebugEvent{CPU: 0, Reason: machine.StopBreakpoint, Breakpoint: x.hit, Addr: 0x1018}
		if s := c.receive(); s != x.want {
			t.Errorf("at %+v: %s", x.hit, s)
		}
	}
	c.send("c")
	c.c.Write([]byte{interrupt})
	if s := c.receive(); s != "T02thread:1;" {
		t.Errorf("interrupted: %s", s)
	}
	if fmt.Sprint(f.resumed) != "[1 -1 -1 -1 -1 -1]" {
		t.Errorf("resumed %v", f.resumed)
	}
	if s := c.ask("D"); s != "OK" {
		t.Errorf("D: %s", s)
	}
	if err := <-done; err != nil || !f.detach {
		t.Errorf("the end: %v, detached %v", err, f.detach)
	}
}

func TestEnds(t *testing.T) {
	c, f, done := start(t)
	c.send("c")
	f.stops <- machine.DebugEvent{Reason: machine.StopEnded}
	if s := c.receive(); s != "W00" {
		t.Errorf("the machine's end: %s", s)
	}
	<-done

	c, f, done = start(t) // gdb dies while the target runs
	c.send("c")
	l := link{r: c.r, w: c.c}
	l.r.ReadByte() // the acknowledgement
	c.c.Close()
	if err := <-done; err != nil && !errors.Is(err, unix.ECONNRESET) || !f.detach {
		t.Errorf("without gdb: %v, detached %v", err, f.detach)
	}

	c, f, done = start(t) // gdb only says nothing any more, and the target has ended
	f.ended = true
	c.send("c")
	c.c.(*net.TCPConn).CloseWrite()
	if s := c.receive(); s != "W00" {
		t.Errorf("the machine's end for one that only listens: %s", s)
	}
	<-done
}

func TestAcknowledge(t *testing.T) {
	c, _, _ := start(t)
	fmt.Fprint(c.c, "$qC#00") // a wrong sum
	if b, _ := c.r.ReadByte(); b != '-' {
		t.Errorf("answered with %q", b)
	}
	if s := c.ask("QStartNoAckMode"); s != "OK" {
		t.Error(s)
	}
	fmt.Fprint(c.c, "+$qC#00") // which nobody looks at any more
	if s := c.receive(); s != "QC1" {
		t.Error(s)
	}
}

// FuzzServe sends a server anything.
func FuzzServe(f *testing.F) {
	for _, s := range []string{"$qSupported#37", "$m1000,4#8e+$g#67\x03$c#63", "$Z0,1000,1#xx", "$Z2,1000,18#xx+$z2,1000,18#xx", "$QStartNoAckMode#b0$X1000,1:}#00$P0=#00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		target := newFake()
		Serve(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(b)), io.Discard}, target, func() {})
	})
}
