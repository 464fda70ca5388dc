package agent

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Server is the guest's side.
type Server struct {
	// Start starts a command, so that whoever reaps the guest's orphans leaves it
	// alone until Finished; Cmd.Start if nil.
	Start    func(*exec.Cmd) error
	Finished func(*exec.Cmd)
	// Shutdown ends the guest.
	Shutdown func(reboot bool)
	// Ready returns when there is what a command takes for granted, and at once after that; nil waits
	// for nothing.
	Ready func()
	// Setup does the part of a Setup that is the init's; nil has none.
	Setup func(*Setup) error
	// Container are the defaults of a guest whose root is a container image. Nil is one that
	// has users of its own: a command's environment is that of a login.
	Container *Defaults
	// Alone is an agent that needs no other process of the guest, and so can stop them all for a while.
	Alone bool
	// Upper is where what is written to the root goes; nil where the root is no overlay.
	Upper *Upper
}

// conn is a connection as vsock sockets and tests have it.
type conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// hostCID is the host's address.
const hostCID = unix.VMADDR_CID_HOST

// Run serves the host until accepting fails. It returns an error at once where
// there is no vsock.
func (s *Server) Run() error {
	l, err := listen(Port)
	if err != nil {
		return err
	}
	defer unix.Close(l)
	first, err := dial(hostCID, Port)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH) {
		return fmt.Errorf("this kernel does not see a vsock device (CONFIG_VIRTIO_VSOCKETS): %w", err)
	}
	go func() {
		for c := first; ; c, err = dial(hostCID, Port) {
			if err == nil { // this host asks for a hello
				greet(c)
			}
			time.Sleep(time.Second)
		}
	}()
	for {
		c, err := accept(l)
		if err != nil {
			return err
		}
		go s.Serve(c)
	}
}

// greet says hello and waits until the host goes away. As a restored guest's does,
// it may come back.
func greet(c conn) {
	defer c.Close()
	l := NewLink(c)
	var w Welcome
	if l.SendJSON(FrameHello, Hello{Version}) == nil && l.ReceiveJSON(FrameHello, &w) == nil {
		setClock(w.Now)
		l.Receive()
	}
}

// maxDrift is how far the guest's clock may be off without being set.
const maxDrift = 50 * time.Millisecond

// setClock sets the guest's clock.
func setClock(now time.Time) error {
	if d := time.Until(now); d < maxDrift && d > -maxDrift {
		return nil
	}
	tv := unix.NsecToTimeval(now.UnixNano())
	return unix.Settimeofday(&tv)
}

// Serve answers one connection of the host.
func (s *Server) Serve(c conn) {
	defer c.Close()
	l := NewLink(c)
	var r Request
	if err := l.ReceiveJSON(FrameRequest, &r); err != nil {
		return
	}
	if r.Version != Version {
		l.SendJSON(FrameReply, Reply{Error: (&MismatchError{Version}).Error()})
		return
	}
	if r.Setup != nil {
		if err := s.setup(r.Setup); err != nil {
			l.SendJSON(FrameReply, Reply{Error: err.Error()})
			linger(c)
			return
		}
	}
	if r.Op == OpExec && r.Exec != nil {
		l.SendJSON(FrameExit, s.exec(l, r.Exec))
		linger(c)
		return
	}
	var reply Reply
	var err error
	switch {
	case r.Op == OpPut && r.In != nil:
		err = r.In.extraction().unpack(&reader{l: l, kind: FrameStdin})
	case r.Op == OpGet && r.Out != nil:
		err = answer(l, func(w io.Writer) error { return archive(w, r.Out.From, r.Out.Top, r.Out.Follow) })
	case r.Op == OpChanges:
		err = answer(l, s.Upper.writeChanges)
	case r.Op == OpLayer:
		err = s.layer(l, r.Pause)
	case r.Op == OpRoot:
		err = answer(l, writeRoot)
	case r.Op == OpTime:
		err = setClock(r.Now)
	case r.Op == OpSync:
		unix.Sync()
	case r.Op == OpSetup:
	case r.Op == OpShutdown:
		defer s.Shutdown(r.Reboot)
	default:
		err = fmt.Errorf("the guest's agent cannot %q", r.Op)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	l.SendJSON(FrameReply, reply)
	linger(c)
}

// answer sends what a function writes.
func answer(l *Link, write func(io.Writer) error) error {
	if err := write(writer{l, FrameStdout}); err != nil {
		return err
	}
	return l.Send(FrameStdout, nil)
}

// linger waits until the host has read all.
func linger(c conn) {
	c.CloseWrite()
	io.Copy(io.Discard, c)
}

// Reaper waits for orphans in the place of PID 1, and starts the processes that
// are not orphans: those it leaves to whoever waits for them.
type Reaper struct {
	mu   sync.Mutex
	pids map[int]bool // that somebody waits for
}

// NewReaper returns a reaper, which begins at once.
func NewReaper() *Reaper {
	r := &Reaper{pids: map[int]bool{}}
	go r.run()
	return r
}

// Start starts a command that its caller waits for.
func (r *Reaper) Start(c *exec.Cmd) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := c.Start()
	if err == nil {
		r.pids[c.Process.Pid] = true
	}
	return err
}

// Finished tells that the command was waited for.
func (r *Reaper) Finished(c *exec.Cmd) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pids, c.Process.Pid)
}

// run looks at children that have ended, without taking those that have an owner.
func (r *Reaper) run() {
	for {
		var info siginfo
		if err := waitid(&info); err != nil {
			time.Sleep(100 * time.Millisecond) // there are no children
			continue
		}
		r.mu.Lock()
		if !r.pids[int(info.pid)] {
			unix.Wait4(int(info.pid), nil, 0, nil)
			r.mu.Unlock()
			continue
		}
		r.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // its owner is about to take it
	}
}
