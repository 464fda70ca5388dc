package cli

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// escape is Ctrl-a, which begins vmm's own keys on the console.
const escape = 1

const consoleHelp = "\r\nCtrl-a x  quit: end the VM at once\r\n" +
	"Ctrl-a p  press the power button: the guest shuts down\r\n" +
	"Ctrl-a h  this help\r\n" +
	"Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n"

// hostConsole is the host's end of the guest's console, or of a port.
type hostConsole struct {
	io.Writer
	in io.Reader // nil where there is no input
	// restore undoes what opening did to the terminal or file.
	restore func()
	// keys tells whether Ctrl-a is vmm's.
	keys bool
}

// openConsole opens what --console names: serial (standard input and output),
// none, a file, or unix:PATH, where one client at a time may connect.
func openConsole(spec string) (*hostConsole, error) {
	switch path, isUnix := strings.CutPrefix(spec, "unix:"); {
	case spec == "none":
		return &hostConsole{Writer: io.Discard, restore: func() {}}, nil
	case spec == "serial":
		return stdConsole()
	case isUnix:
		c, err := listenConsole(path)
		if err != nil {
			return nil, fmt.Errorf("--console: %w", err)
		}
		return c, nil
	default:
		c, err := fileConsole(spec)
		if err != nil {
			return nil, fmt.Errorf("--console: %w", err)
		}
		return c, nil
	}
}

// fileConsole writes to a file; there is no input.
func fileConsole(path string) (*hostConsole, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &hostConsole{Writer: f, restore: func() { f.Close() }}, nil
}

// messages is where vmm itself speaks while the guest runs.
func (c *hostConsole) messages() io.Writer {
	if c.keys {
		return rawTerminal{os.Stderr}
	}
	return os.Stderr
}

// rawTerminal begins lines where a raw terminal does not by itself.
type rawTerminal struct{ io.Writer }

// Write implements io.Writer.
func (t rawTerminal) Write(p []byte) (int, error) {
	_, err := io.WriteString(t.Writer, "\r\n"+strings.ReplaceAll(string(p), "\n", "\r\n"))
	return len(p), err
}

// stdConsole uses standard input and output; a terminal becomes raw.
func stdConsole() (*hostConsole, error) {
	c := &hostConsole{Writer: os.Stdout, in: os.Stdin, restore: func() {}}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return c, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("the terminal cannot be made raw: %w", err)
	}
	c.keys = true
	c.restore = func() { term.Restore(fd, state) }
	return c, nil
}

// terminalArgs tells the guest's init the kind of the terminal, by kernel
// arguments that become its environment; with withSize its size too, for a
// console that cannot tell.
func terminalArgs(withSize bool) string {
	fd := int(os.Stdout.Fd())
	if !term.IsTerminal(fd) {
		return ""
	}
	var args []string
	if t := os.Getenv("TERM"); t != "" && !strings.ContainsAny(t, " \"") {
		args = append(args, "TERM="+t)
	}
	if cols, rows, err := term.GetSize(fd); withSize && err == nil && cols > 0 && rows > 0 {
		args = append(args, fmt.Sprintf("COLUMNS=%d LINES=%d", cols, rows))
	}
	return strings.Join(args, " ")
}

// socketConsole is a console behind a unix socket. Output without a client is
// dropped, as on a serial cable that nobody holds.
type socketConsole struct {
	l  net.Listener
	mu sync.Mutex
	c  net.Conn
	r  *io.PipeReader
	w  *io.PipeWriter
}

func listenConsole(path string) (*hostConsole, error) {
	l, err := listenUnix(path)
	if err != nil {
		return nil, err
	}
	s := &socketConsole{l: l}
	s.r, s.w = io.Pipe()
	go s.accept()
	return &hostConsole{Writer: s, in: s.r, restore: s.close}, nil
}

// answers tells whether somebody listens on a socket.
func answers(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err == nil
}

func (s *socketConsole) accept() {
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

func (s *socketConsole) set(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		s.c.Close()
	}
	s.c = c
}

// Write implements io.Writer.
func (s *socketConsole) Write(p []byte) (int, error) {
	s.mu.Lock()
	c := s.c
	s.mu.Unlock()
	if c != nil {
		c.Write(p)
	}
	return len(p), nil
}

func (s *socketConsole) close() {
	s.l.Close()
	s.set(nil)
	s.w.Close()
}

// consoleActions is what the keys behind Ctrl-a do.
type consoleActions struct {
	quit, power func()
	help        func()
	detach      func() // nil where there is nothing to leave
}

// copyInput sends input to the guest until it ends, and obeys Ctrl-a.
func (c *hostConsole) copyInput(send func([]byte) error, do consoleActions) {
	if c.in == nil {
		return
	}
	buf := make([]byte, 256)
	escaped := false
	for {
		n, err := c.in.Read(buf)
		if err != nil {
			return
		}
		p := buf[:n]
		if c.keys {
			p, escaped = filterKeys(p, escaped, do)
		}
		if len(p) > 0 && send(p) != nil {
			return
		}
	}
}

// filterKeys takes vmm's own keys out of p, in place. escaped tells whether
// the last byte was an unanswered Ctrl-a.
func filterKeys(p []byte, escaped bool, do consoleActions) ([]byte, bool) {
	out := p[:0]
	for _, b := range p {
		switch {
		case !escaped && b == escape:
			escaped = true
			continue
		case !escaped:
			out = append(out, b)
		case b == escape:
			out = append(out, b)
		case b == 'x':
			do.quit()
		case b == 'p':
			do.power()
		case b == 'h' || b == '?':
			do.help()
		case b == 'd' && do.detach != nil:
			do.detach()
		}
		escaped = false
	}
	return out, escaped
}
