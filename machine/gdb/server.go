package gdb

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"vmm/kvm"
	"vmm/machine"
)

// Target is what is debugged: a machine.Debugger.
type Target interface {
	Attach() error
	Detach()
	CPUs() int
	Resume(step int) error
	Wait() machine.DebugEvent
	Interrupt()
	Registers(cpu int) (kvm.Regs, kvm.Sregs, error)
	SetRegisters(cpu int, r kvm.Regs) error
	ReadMemory(cpu int, addr uint64, to []byte) (int, error)
	WriteMemory(cpu int, addr uint64, from []byte) (int, error)
	SetBreakpoint(cpu int, b machine.Breakpoint) error
	ClearBreakpoint(b machine.Breakpoint) error
}

// server serves one gdb.
type server struct {
	link
	t Target
	// cpu is the one that registers and memory are asked of.
	cpu int
	// running is while the target runs: gdb sends nothing but an interrupt then.
	running chan machine.DebugEvent
	end     func()
	// gdb knows the stop reasons of these names.
	swbreak, hwbreak bool
}

// The replies of the protocol.
const (
	replyOK      = "OK"
	replyUnknown = ""
	replyError   = "E01"
)

// Signals, by gdb's numbers.
const (
	sigInt  = 2
	sigTrap = 5
)

// Serve attaches to a target and serves a gdb until it leaves or the target ends.
// end ends the target, for gdb's kill.
func Serve(rw io.ReadWriter, t Target, end func()) error {
	if err := t.Attach(); err != nil {
		return err
	}
	defer t.Detach()
	s := &server{link: link{r: bufio.NewReader(rw), w: rw, interrupted: t.Interrupt}, t: t, end: end}
	packets, failed := make(chan string), make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			p, err := s.receive()
			if err != nil {
				failed <- err
				return
			}
			select {
			case packets <- p:
			case <-done:
				return
			}
		}
	}()
	for {
		select {
		case p := <-packets:
			if leave, err := s.packet(p); leave || err != nil {
				return err
			}
		case e := <-s.running:
			s.running = nil
			if err := s.send(s.stopped(e)); err != nil || e.Reason == machine.StopEnded {
				return err
			}
		case err := <-failed:
			if s.running != nil { // Detach needs a target that stands
				t.Interrupt()
				if e := <-s.running; e.Reason == machine.StopEnded { // it may listen still
					s.send(s.stopped(e))
				}
			}
			if err == io.EOF {
				err = nil
			}
			return err
		}
	}
}

// packet answers one packet; leave tells that gdb goes.
func (s *server) packet(p string) (leave bool, err error) {
	if s.running != nil { // not of the protocol: as if it had interrupted before
		s.t.Interrupt()
		e := <-s.running
		s.running = nil
		if err := s.send(s.stopped(e)); err != nil || e.Reason == machine.StopEnded {
			return true, err
		}
	}
	reply := replyUnknown
	rest := ""
	if len(p) > 0 {
		rest = p[1:]
	}
	switch {
	case strings.HasPrefix(p, "q"), strings.HasPrefix(p, "Q"), strings.HasPrefix(p, "v"):
		return s.named(p)
	case p == "?":
		reply = s.stopped(machine.DebugEvent{CPU: s.cpu, Reason: machine.StopStep})
	case strings.HasPrefix(p, "D"):
		return true, s.send(replyOK)
	case p == "k":
		s.end()
		return true, nil
	case strings.HasPrefix(p, "H"), strings.HasPrefix(p, "T"):
		reply = s.thread(p)
	case p == "g":
		reply = s.readAll()
	case strings.HasPrefix(p, "G"):
		reply = s.writeAll(rest)
	case strings.HasPrefix(p, "p"):
		reply = s.readOne(rest)
	case strings.HasPrefix(p, "P"):
		reply = s.writeOne(rest)
	case strings.HasPrefix(p, "m"):
		reply = s.readMemory(rest)
	case strings.HasPrefix(p, "M"), strings.HasPrefix(p, "X"):
		reply = s.writeMemory(rest, p[0] == 'X')
	case strings.HasPrefix(p, "Z"), strings.HasPrefix(p, "z"):
		reply = s.breakpoint(rest, p[0] == 'Z')
	case p == "c":
		return false, s.resume(-1)
	case p == "s":
		return false, s.resume(s.cpu)
	}
	return false, s.send(reply)
}

// named answers the packets that have names.
func (s *server) named(p string) (leave bool, err error) {
	reply := replyUnknown
	name, args, _ := strings.Cut(p, ":")
	switch name {
	case "qSupported":
		s.swbreak, s.hwbreak = strings.Contains(args, "swbreak+"), strings.Contains(args, "hwbreak+")
		reply = fmt.Sprintf("PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+", maxPacket)
	case "QStartNoAckMode":
		s.noAck.Store(true) // before gdb knows, and sends the next packet
		return false, s.send(replyOK)
	case "qXfer":
		reply = transfer(args)
	case "qAttached":
		reply = "1"
	case "qC":
		reply = fmt.Sprintf("QC%x", s.cpu+1)
	case "qfThreadInfo":
		var ids []string
		for i := range s.t.CPUs() {
			ids = append(ids, strconv.FormatInt(int64(i+1), 16))
		}
		reply = "m" + strings.Join(ids, ",")
	case "qsThreadInfo":
		reply = "l"
	case "vCont?":
		reply = "vCont;c;C;s;S"
	case "vKill":
		s.end()
		return true, s.send(replyOK)
	default:
		if id, ok := strings.CutPrefix(p, "qThreadExtraInfo,"); ok {
			if n, err := strconv.ParseInt(id, 16, 32); err == nil {
				reply = hex.EncodeToString(fmt.Appendf(nil, "CPU %d", n-1))
			}
		} else if actions, ok := strings.CutPrefix(p, "vCont;"); ok {
			return false, s.cont(actions)
		}
	}
	return false, s.send(reply)
}

// transfer is a part of the target's description.
func transfer(args string) string {
	span, ok := strings.CutPrefix(args, "features:read:target.xml:")
	if !ok {
		return replyUnknown
	}
	from, n, ok := numbers(span, ",")
	if !ok {
		return replyError
	}
	xml := targetXML()
	from = min(from, uint64(len(xml)))
	end := min(from+min(n, maxPacket/2), uint64(len(xml)))
	if end == uint64(len(xml)) {
		return "l" + xml[from:end]
	}
	return "m" + xml[from:end]
}

// numbers are two in base 16.
func numbers(s, separator string) (a, b uint64, ok bool) {
	x, y, ok := strings.Cut(s, separator)
	a, err1 := strconv.ParseUint(x, 16, 64)
	b, err2 := strconv.ParseUint(y, 16, 64)
	return a, b, ok && err1 == nil && err2 == nil
}

// thread answers H and T, whose threads are CPUs from 1 on; 0 and -1 are any.
func (s *server) thread(p string) string {
	id := p[1:]
	if p[0] == 'H' && id != "" {
		id = id[1:]
	}
	n, err := strconv.ParseInt(id, 16, 32)
	switch {
	case err != nil || int(n) > s.t.CPUs():
		return replyError
	case n > 0 && strings.HasPrefix(p, "Hg"):
		s.cpu = int(n - 1)
	}
	return replyOK
}

// cont is vCont: a step of one CPU, or all go on.
func (s *server) cont(actions string) error {
	for _, a := range strings.Split(actions, ";") {
		action, thread, _ := strings.Cut(a, ":")
		if action == "" || action[0] != 's' && action[0] != 'S' {
			continue
		}
		cpu := s.cpu
		if n, err := strconv.ParseInt(thread, 16, 32); err == nil && n > 0 && int(n) <= s.t.CPUs() {
			cpu = int(n - 1)
		}
		return s.resume(cpu)
	}
	return s.resume(-1)
}

// resume lets the target go on; its next stop is the answer.
func (s *server) resume(step int) error {
	if err := s.t.Resume(step); err != nil {
		return s.send(replyError)
	}
	stopped := make(chan machine.DebugEvent, 1)
	s.running = stopped
	go func() { stopped <- s.t.Wait() }()
	return nil
}

// stopped is the reply for an event.
func (s *server) stopped(e machine.DebugEvent) string {
	if e.Reason == machine.StopEnded {
		return "W00"
	}
	signal, why := sigTrap, ""
	switch e.Reason {
	case machine.StopInterrupted:
		signal = sigInt
	case machine.StopBreakpoint:
		why = s.reason(e)
	}
	s.cpu = e.CPU
	return fmt.Sprintf("T%02xthread:%x;%s", signal, e.CPU+1, why)
}

// reason tells what kind of breakpoint was hit, and at which data.
func (s *server) reason(e machine.DebugEvent) string {
	switch e.Breakpoint.Kind {
	case machine.BreakSoftware:
		if s.swbreak {
			return "swbreak:;"
		}
	case machine.BreakHardware:
		if s.hwbreak {
			return "hwbreak:;"
		}
	case machine.BreakWrite:
		return fmt.Sprintf("watch:%x;", e.Addr)
	case machine.BreakAccess:
		return fmt.Sprintf("awatch:%x;", e.Addr)
	}
	return ""
}

func (s *server) readAll() string {
	regs, sregs, err := s.t.Registers(s.cpu)
	if err != nil {
		return replyError
	}
	var b strings.Builder
	for i := range registers {
		b.WriteString(registers[i].text(&regs, &sregs))
	}
	return b.String()
}

func (s *server) writeAll(text string) string {
	regs, _, err := s.t.Registers(s.cpu)
	if err != nil {
		return replyError
	}
	for i := range registers {
		var ok bool
		if text, ok = registers[i].parse(text, &regs); !ok {
			break // gdb may know fewer
		}
	}
	return result(s.t.SetRegisters(s.cpu, regs))
}

func result(err error) string {
	if err != nil {
		return replyError
	}
	return replyOK
}

func (s *server) readOne(text string) string {
	n, err := strconv.ParseUint(text, 16, 32)
	if err != nil || n >= uint64(len(registers)) {
		return replyError
	}
	regs, sregs, err := s.t.Registers(s.cpu)
	if err != nil {
		return replyError
	}
	return registers[n].text(&regs, &sregs)
}

func (s *server) writeOne(text string) string {
	number, value, _ := strings.Cut(text, "=")
	n, err := strconv.ParseUint(number, 16, 32)
	if err != nil || n >= uint64(len(registers)) || registers[n].set == nil {
		return replyError
	}
	regs, _, err := s.t.Registers(s.cpu)
	if err != nil {
		return replyError
	}
	if _, ok := registers[n].parse(value, &regs); !ok {
		return replyError
	}
	return result(s.t.SetRegisters(s.cpu, regs))
}

func (s *server) readMemory(text string) string {
	addr, n, ok := numbers(text, ",")
	if !ok {
		return replyError
	}
	b := make([]byte, min(n, maxPacket/2))
	k, err := s.t.ReadMemory(s.cpu, addr, b)
	if err != nil {
		return replyError
	}
	return hex.EncodeToString(b[:k])
}

func (s *server) writeMemory(text string, binary bool) string {
	span, data, _ := strings.Cut(text, ":")
	addr, n, ok := numbers(span, ",")
	b := []byte(data)
	var err error
	if !binary {
		b, err = hex.DecodeString(data)
	}
	if !ok || err != nil || uint64(len(b)) != n {
		return replyError
	}
	if n == 0 {
		return replyOK
	}
	k, err := s.t.WriteMemory(s.cpu, addr, b)
	if err != nil || k < len(b) {
		return replyError
	}
	return replyOK
}

// breakpointKinds are the types of Z and z. 3, data that is read, is missing, as x86
// has none: gdb then takes one for all accesses, and passes over those that changed
// the data.
var breakpointKinds = map[string]machine.BreakKind{
	"0": machine.BreakSoftware, "1": machine.BreakHardware, "2": machine.BreakWrite, "4": machine.BreakAccess,
}

// breakpoint answers Z and z.
func (s *server) breakpoint(text string, set bool) string {
	kind, span, _ := strings.Cut(text, ",")
	var b machine.Breakpoint
	var ok bool
	if b.Kind, ok = breakpointKinds[kind]; !ok {
		return replyUnknown
	}
	if b.Addr, b.Len, ok = numbers(span, ","); !ok {
		return replyError
	}
	if b.Kind == machine.BreakSoftware || b.Kind == machine.BreakHardware {
		b.Len = 0 // gdb means the length of the instruction of a breakpoint
	}
	var err error
	if set {
		err = s.t.SetBreakpoint(s.cpu, b)
	} else {
		err = s.t.ClearBreakpoint(b)
	}
	if err != nil {
		return "E." + err.Error()
	}
	return replyOK
}
