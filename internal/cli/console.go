package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// escape is Ctrl-a, which begins vmm's own keys on the console.
const escape = 1

const consoleHelp = "\r\nCtrl-a x  quit: end the VM at once\r\n" +
	"Ctrl-a p  press the power button: the guest shuts down\r\n" +
	"Ctrl-a h  this help\r\n" +
	"Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n"

// hostConsole is this process's end of the guest's console.
type hostConsole struct {
	io.Writer
	in io.Reader // nil where there is no input
	// restore undoes what opening did to the terminal.
	restore func()
	keys    bool           // Ctrl-a is vmm's
	actions consoleActions // of the keys behind it
	escaped bool           // the last byte was Ctrl-a
}

// noConsole is none.
func noConsole() *hostConsole { return &hostConsole{Writer: io.Discard, restore: func() {}} }

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
func terminalArgs(withSize bool) (args []string) {
	fd := int(os.Stdout.Fd())
	if !term.IsTerminal(fd) {
		return nil
	}
	if t := os.Getenv("TERM"); t != "" && !strings.ContainsAny(t, " \"") {
		args = append(args, "TERM="+t)
	}
	if cols, rows, err := term.GetSize(fd); withSize && err == nil && cols > 0 && rows > 0 {
		args = append(args, fmt.Sprintf("COLUMNS=%d LINES=%d", cols, rows))
	}
	return args
}

// consoleActions is what the keys behind Ctrl-a do.
type consoleActions struct {
	quit, power func()
	help        func()
	detach      func() // nil where there is nothing to leave
}

// Read implements io.Reader: it is the input without vmm's own keys, which it obeys.
func (c *hostConsole) Read(p []byte) (n int, err error) {
	for n == 0 && err == nil {
		n, err = c.in.Read(p)
		if c.keys {
			var rest []byte
			rest, c.escaped = filterKeys(p[:n], c.escaped, c.actions)
			n = len(rest)
		}
	}
	return n, err
}

// filterKeys takes vmm's own keys out of p, in place. escaped reports whether
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
