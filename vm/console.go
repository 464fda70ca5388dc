package vm

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vmm/internal/output"
	"vmm/internal/tail"
	"vmm/internal/unixsocket"
	"vmm/machine"
)

// console is the VM's console. What the guest says, on whichever device, goes one way:
// past the machine, which looks for a panic in it, and then to the log, the file or
// socket of the Config, the stream of WithConsole and whoever is attached.
type console struct {
	device atomic.Pointer[io.Writer] // of the machine, which watches what goes past
	send   func([]byte) error        // to the guest
	outs   []io.Writer
	last   tail.Buffer
	end    endpoint

	mu       sync.Mutex
	attached map[*attachment]bool
}

// attachment is one terminal. What it does not take in time is lost to it.
type attachment struct{ out chan []byte }

// backlog is how many pieces of output may wait for a terminal.
const backlog = 1024

// openConsole opens the console's end on the host, which is not in a directory of
// guest's; out may be nil.
func openConsole(to Endpoint, out io.Writer, guest []string) (*console, error) {
	c := &console{attached: map[*attachment]bool{}}
	var err error
	if c.end, err = openEndpoint(to, guest); err != nil {
		return nil, of("Console", err)
	}
	if c.outs = []io.Writer{&c.last, c.end}; out != nil {
		c.outs = append(c.outs, out)
	}
	return c, nil
}

// connect gives the console its machine; send takes what the guest is to read, and in
// (which may be nil) is read for that until it ends.
func (c *console) connect(m *machine.Machine, send func([]byte) error, in io.Reader) {
	w := m.ConsoleWriter()
	c.device.Store(&w)
	c.send = send
	for _, r := range []io.Reader{in, c.end.input()} {
		if r != nil {
			go forward(r, send)
		}
	}
}

// forward sends what is read until there is no more, or nobody takes it. It has no
// owner that could wait for it: a read from a terminal cannot be ended.
func forward(r io.Reader, send func([]byte) error) {
	buf := make([]byte, 256)
	for {
		n, err := r.Read(buf)
		if n > 0 && send(buf[:n]) != nil || err != nil {
			return
		}
	}
}

// Write is what the machine has let past.
func (c *console) Write(p []byte) (int, error) {
	for _, w := range c.outs {
		w.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.attached) == 0 {
		return len(p), nil
	}
	b := slices.Clone(p)
	for a := range c.attached {
		select {
		case a.out <- b:
		default:
		}
	}
	return len(p), nil
}

// virtio is the console for a virtio device, which is made before its machine.
func (c *console) virtio() io.Writer { return deviceWriter{c} }

type deviceWriter struct{ *console }

// Write implements io.Writer.
func (w deviceWriter) Write(p []byte) (int, error) {
	if d := w.device.Load(); d != nil {
		return (*d).Write(p)
	}
	return len(p), nil
}

// attach connects a terminal until it has said all that it will, or cannot be written
// to, or the VM ends. What the guest has said until then, it still gets.
func (c *console) attach(rw io.ReadWriter, ended <-chan struct{}) {
	a := &attachment{make(chan []byte, backlog)}
	c.mu.Lock()
	c.attached[a] = true
	c.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		forward(rw, c.send)
	}()
	for on := true; on; {
		select {
		case b := <-a.out:
			_, err := rw.Write(b)
			on = err == nil
		case <-gone:
			on = false
		case <-ended:
			on = false
		}
	}
	c.mu.Lock()
	delete(c.attached, a)
	c.mu.Unlock()
	for len(a.out) > 0 { // nothing is added any more
		if _, err := rw.Write(<-a.out); err != nil {
			return
		}
	}
}

func (c *console) close() {
	if c != nil {
		c.end.close()
	}
}

// endpoint is what an Endpoint is opened as.
type endpoint interface {
	io.Writer
	input() io.Reader // nil if there is none
	close()
}

// openEndpoint opens a file, which is not in a directory of guest's, or listens on a
// socket.
func openEndpoint(e Endpoint, guest []string) (endpoint, error) {
	switch {
	case e.File != "" && e.Socket != "":
		return nil, fmt.Errorf("%s and %s: a file or a socket, not both", e.File, e.Socket)
	case e.Socket != "":
		return listenEndpoint(e.Socket)
	case e.File != "":
		f, err := output.Create(e.File, output.Private, guest)
		return fileEndpoint{f}, err
	}
	return nowhere{}, nil
}

// nowhere drops what is written.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) input() io.Reader            { return nil }
func (nowhere) close()                      {}

type fileEndpoint struct{ *output.File }

func (fileEndpoint) input() io.Reader { return nil }
func (f fileEndpoint) close()         { f.Close() }

// socketEndpoint is a unix socket. Output without a client is dropped, as on a serial
// cable that nobody holds.
type socketEndpoint struct {
	l    *net.UnixListener
	done chan struct{} // closed when accept has returned
	mu   sync.Mutex
	c    net.Conn
	r    *io.PipeReader
	w    *io.PipeWriter
}

func listenEndpoint(path string) (*socketEndpoint, error) {
	l, err := unixsocket.Listen(path)
	if err != nil {
		return nil, err
	}
	s := &socketEndpoint{l: l, done: make(chan struct{})}
	s.r, s.w = io.Pipe()
	go s.accept()
	return s, nil
}

func (s *socketEndpoint) accept() {
	defer close(s.done)
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.set(c)
		io.Copy(s.w, c) // until the client goes
		s.set(nil)
	}
}

func (s *socketEndpoint) set(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		s.c.Close()
	}
	s.c = c
}

// Write implements io.Writer.
func (s *socketEndpoint) Write(p []byte) (int, error) {
	s.mu.Lock()
	c := s.c
	s.mu.Unlock()
	if c != nil {
		// Who does not read must not hold the guest's device up, nor the VM's end.
		c.SetWriteDeadline(time.Now().Add(socketTimeout))
		if _, err := c.Write(p); err != nil {
			c.Close() // accept sees it
		}
	}
	return len(p), nil
}

// socketTimeout is how long the client of a socket may take to read.
const socketTimeout = 2 * time.Second

func (s *socketEndpoint) input() io.Reader { return s.r }

func (s *socketEndpoint) close() {
	s.l.Close()
	s.r.Close()
	s.set(nil)
	<-s.done
	s.set(nil)
}
