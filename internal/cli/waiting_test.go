package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openPTY returns a terminal of so many columns, and what is shown on it once it is closed.
func openPTY(t *testing.T, cols uint16) (tty *os.File, shown func() string) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { far.Close() })
	if err := unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: cols}); err != nil {
		t.Fatal(err)
	}
	return tty, func() string {
		tty.Close()
		b, _ := io.ReadAll(far) // ends with EIO, as the terminal does
		return strings.ReplaceAll(string(b), "\r\n", "\n")
	}
}

// TestWaiting shows what is waited for on a terminal, and nothing of it when output comes.
func TestWaiting(t *testing.T) {
	const boots, clear = "waiting for the guest to boot", "\r\x1b[K"
	for _, c := range []struct {
		name  string
		term  string
		cols  uint16
		spin  bool
		ticks []time.Duration // since it began
		next  bool
		after []time.Duration
		say   string // a message meanwhile
		want  string
	}{
		{name: "soon", spin: true, ticks: []time.Duration{100, 400}, want: "output"},
		{name: "a spinner", spin: true, ticks: []time.Duration{600, 700}, want: clear + "-" + clear + `\` + clear + "output"},
		{name: "long", spin: true, ticks: []time.Duration{600, 2100}, want: clear + "-" + clear + `\ ` + boots + clear + "output"},
		{name: "narrow", cols: 12, spin: true, ticks: []time.Duration{2100}, want: clear + "- waiting f" + clear + "output"},
		{name: "then the command", spin: true, ticks: []time.Duration{2100}, next: true, after: []time.Duration{2200}, want: clear + "- " + boots + clear + `\ ` + firstOutput + clear + "output"},
		{name: "a message", spin: true, ticks: []time.Duration{600}, say: "vmm: word\n", want: clear + "-" + clear + "vmm: word\noutput"},
		{name: "no terminal for the command", ticks: []time.Duration{600, 1900}, want: "output"},
		{name: "no terminal for the command, long", ticks: []time.Duration{1900, 2100, 2200}, want: "vmm: " + boots + "\noutput"},
		{name: "no terminal for the command, which runs", ticks: []time.Duration{1900}, next: true, after: []time.Duration{2100}, want: "output"},
		{name: "a terminal that cannot", term: "dumb", spin: true, ticks: []time.Duration{600, 2100}, want: "vmm: " + boots + "\noutput"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("TERM", c.term)
			tty, shown := openPTY(t, cmp.Or(c.cols, 80))
			w := newWaiting(tty)
			if w == nil {
				t.Fatal("a terminal is none")
			}
			w.what, w.spin, w.began = boots, c.spin && c.term != "dumb", time.Now().Add(time.Hour) // whose ticks are ours
			tick := func(list []time.Duration) {
				for _, at := range list {
					w.tick(w.began.Add(at * time.Millisecond))
				}
			}
			tick(c.ticks)
			if c.next {
				w.next(firstOutput)
			}
			tick(c.after)
			if c.say != "" {
				w.clear()
				io.WriteString(tty, c.say)
			}
			out := w.before(tty)
			out.Write(nil)
			io.WriteString(out, "out")
			tick([]time.Duration{9000})
			io.WriteString(out, "put")
			w.end()
			if got := shown(); got != c.want {
				t.Errorf("%q\nnot\n%q", got, c.want)
			}
		})
	}
}

// TestWaitingElsewhere: what is no terminal gets not a byte.
func TestWaitingElsewhere(t *testing.T) {
	r, f, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := newWaiting(f)
	w.begin("waiting", true)
	w.next(firstOutput)
	w.clear()
	io.WriteString(w.before(f), "output")
	w.end()
	f.Close()
	if b, _ := io.ReadAll(r); string(b) != "output" {
		t.Errorf("%q", b)
	}
}
