package tests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is the far end of a pseudo-terminal, with what was shown on it.
type terminal struct {
	t   *testing.T
	far *os.File
	tty *os.File

	mu    sync.Mutex
	shown bytes.Buffer
}

func openTerminal(t *testing.T) *terminal {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	if err := unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
		t.Fatal(err)
	}
	p := &terminal{t: t, far: far, tty: tty}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.shown.Write(buf[:n])
			p.mu.Unlock()
		}
	}()
	return p
}

// expect waits until the text has been shown, and forgets what came before.
func (p *terminal) expect(want string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience(p.t, 3*time.Minute)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		p.mu.Lock()
		s := p.shown.String()
		if i := strings.Index(s, want); i >= 0 {
			p.shown.Next(i + len(want))
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
	p.t.Fatalf("%q was not shown; what was:\n%s", want, p.shown.String())
}

func (p *terminal) send(s string) {
	p.t.Helper()
	if _, err := p.far.WriteString(s); err != nil {
		p.t.Fatal(err)
	}
}

// start runs vmm on the terminal, as its session's leader.
func (p *terminal) start(args ...string) *exec.Cmd {
	p.t.Helper()
	return p.startProgram(vmmPath, args...)
}

func (p *terminal) startProgram(name string, args ...string) *exec.Cmd {
	p.t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "TERM=vt100")
	c.Stdin, c.Stdout, c.Stderr = p.tty, p.tty, p.tty
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Process.Kill() })
	return c
}

// run starts a guest on the terminal and waits for its prompt.
func (p *terminal) run(args ...string) *exec.Cmd {
	p.t.Helper()
	c := p.start(append([]string{"run", "-m", "256M", "--timeout", bootLimit}, args...)...)
	p.expect("# ")
	return c
}

// settings are the terminal's.
func (p *terminal) settings() unix.Termios {
	p.t.Helper()
	s, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *s
}

// resize gives the terminal another size.
func (p *terminal) resize(rows, cols uint16) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.far.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		p.t.Fatal(err)
	}
}

// TestInput: a command has standard input with -i only; without it nothing of that is read,
// and a command in the background takes none of a terminal's.
func TestInput(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	must(t, vmmPath, "run", "-d", "--name", "in", "-m", "256M", "--timeout", bootLimit)
	defer vmm(t, "rm", "-f", "in")
	must(t, vmmPath, "exec", "in", "true")
	const warning = "-i gives it that"
	for _, c := range []struct{ script, out, errs string }{
		{`printf 'a\nb\nc\n' | while read l; do "$0" exec in echo "$l" 2>/dev/null; done`, "a\nb\nc\n", ""},
		{`printf 'a\nb\nc\n' > list; while read l; do "$0" exec in echo "$l"; done < list`, "a\nb\nc\n", ""},
		{`printf 'a\nb\n' > list; { "$0" exec in true; cat; } < list`, "a\nb\n", ""},
		{`echo lost | "$0" exec in cat`, "", warning},
		{`echo kept | "$0" exec -i in cat`, "kept\n", ""},
		{`echo kept > f; "$0" exec -i in cat < f`, "kept\n", ""},
		{`"$0" exec in cat < /dev/null`, "", ""},
		{`true | "$0" exec in cat`, "", ""},
		{`"$0" exec in cat <&-`, "", ""},
	} {
		x := exec.Command("sh", "-c", c.script, vmmPath)
		x.Dir = t.TempDir()
		var errs bytes.Buffer
		x.Stderr = &errs
		out, err := x.Output()
		if err != nil || string(out) != c.out || !strings.Contains(errs.String(), c.errs) || (c.errs == "") != (errs.Len() == 0) {
			t.Errorf("%s: %q, %q, %v", c.script, out, errs.String(), err)
		}
	}
	for _, flag := range []string{"-i", ""} {
		p := openTerminal(t)
		p.startProgram("sh", "-i")
		p.send("stty -echo\r")
		p.send(vmmPath + " exec " + flag + " in sh -c 'sleep 2; echo do''ne' &\r")
		p.send("echo ty''ped\r") // to the shell, and not to the command
		p.expect("typed")
		p.expect("done")
		p.send("jobs -l; echo en''d\r")
		p.expect("end")
	}
}

// TestTerminal uses the console as a person does: line editing, window size,
// an interrupt key, vmm's own keys, and the terminal as it was afterwards.
func TestTerminal(t *testing.T) {
	needKVM(t)
	p := openTerminal(t)
	before := p.settings()
	c := p.run("--name", "console-test")
	p.send("echo size $(stty size) on $(hostname)\r")
	p.expect("size 33 77 on console-test")
	p.send("echo mistaXX\x7f\x7f\x7fken | tr k K\r") // two deleted, and one more
	p.expect("mistKen")
	p.send("sleep 1000\r")
	p.expect("sleep 1000")
	time.Sleep(300 * time.Millisecond)
	p.send("\x03echo inter''rupted\r")
	p.expect("interrupted")
	p.send("\x01h")
	p.expect("Ctrl-a x")
	p.send("\x01p")
	if err := c.Wait(); err != nil {
		t.Errorf("after the power button: %v", err)
	}
	if p.settings() != before {
		t.Error("the terminal is not as it was")
	}
}

// TestVirtioConsole has hvc0 for its console: the guest follows the terminal's
// size, and more ports change nothing in that.
func TestVirtioConsole(t *testing.T) {
	needKVM(t)
	for _, extra := range [][]string{nil, {"--port", "log=" + t.TempDir() + "/log"}} {
		p := openTerminal(t)
		c := p.run(append([]string{"--console-device", "virtio"}, extra...)...)
		p.send("echo $(tty) is $(stty size)\r")
		p.expect("/dev/hvc0 is 33 77")
		// The kernel tells the process group in front that the size has changed.
		p.resize(44, 99)
		p.send("until [ \"$(stty size)\" = '44 99' ]; do sleep 0.2; done; echo gr''own\r")
		p.expect("grown")
		p.send("exit\r")
		if err := c.Wait(); err != nil {
			t.Errorf("after exit: %v", err)
		}
	}
}
