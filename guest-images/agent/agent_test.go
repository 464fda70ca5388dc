package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connect returns a client of a server in this process, joined by socket pairs.
func connect(t testing.TB, s *Server) *Client {
	return &Client{Dial: func(context.Context) (net.Conn, error) {
		a, b := pair(t)
		go s.Serve(b)
		return a, nil
	}}
}

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func run(t *testing.T, e Exec, in io.Reader) (out, errs string, x Exit) {
	t.Helper()
	var o, b bytes.Buffer
	x, err := connect(t, &Server{}).Exec(context.Background(), e, Streams{In: in, Out: &o, Err: &b})
	if err != nil {
		t.Fatal(err)
	}
	return o.String(), b.String(), x
}

func sh(script string) Exec { return Exec{Argv: []string{"sh", "-c", script}} }

func TestExec(t *testing.T) {
	for _, c := range []struct {
		name      string
		exec      Exec
		in        string
		out, errs string
		exit      Exit
	}{
		{name: "streams apart", exec: sh("echo out; echo err >&2; exit 3"), out: "out\n", errs: "err\n", exit: Exit{Status: 3}},
		{name: "input", exec: sh("tr a-z A-Z"), in: "hello", out: "HELLO"},
		{name: "no input", exec: sh("cat"), out: ""},
		{name: "environment", exec: Exec{Argv: []string{"sh", "-c", "echo $A $PWD"}, Env: []string{"A=b c"}, Dir: "/usr"}, out: "b c /usr\n"},
		{name: "signal", exec: sh("kill -TERM $$"), exit: Exit{Status: 143, Signal: 15}},
		{name: "not found", exec: Exec{Argv: []string{"no-such-thing"}}, exit: Exit{Status: 127}},
		{name: "not executable", exec: Exec{Argv: []string{"/etc/passwd"}}, exit: Exit{Status: 126}},
		{name: "no directory", exec: Exec{Argv: []string{"true"}, Dir: "/nowhere"}, exit: Exit{Status: 127}},
		{name: "no user", exec: Exec{Argv: []string{"true"}, User: "nobody-at-all"}, exit: Exit{Status: 126}},
		{name: "left behind", exec: sh("sleep 1000 & echo done"), out: "done\n"},
		{name: "terminal", exec: Exec{Argv: []string{"sh", "-c", "stty size; tty >/dev/null && echo yes"}, TTY: true, Rows: 33, Cols: 77}, out: "33 77\r\nyes\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, errs, x := run(t, c.exec, strings.NewReader(c.in))
			if out != c.out || errs != c.errs || x.Status != c.exit.Status || x.Signal != c.exit.Signal {
				t.Errorf("out %q, err %q, %+v", out, errs, x)
			}
			if x.Status >= 126 && x.Signal == 0 && x.Error == "" {
				t.Error("no reason is given")
			}
		})
	}
	if os.Getuid() == 0 {
		out, _, _ := run(t, Exec{Argv: []string{"id", "-u"}, User: "12345:54321"}, nil)
		if out != "12345\n" {
			t.Errorf("the user is %q", out)
		}
	}
}

// TestBinary sends megabytes of any bytes through a command.
func TestBinary(t *testing.T) {
	data := make([]byte, 8<<20)
	rand.Read(data)
	out, _, _ := run(t, Exec{Argv: []string{"cat"}}, bytes.NewReader(data))
	if out != string(data) {
		t.Error("what came back is not what was sent")
	}
}

// TestSignals: they reach a command that reads none of its input.
func TestSignals(t *testing.T) {
	signals := make(chan os.Signal, 1)
	out, in := io.Pipe()
	go func() {
		io.ReadFull(out, make([]byte, 6)) // it has set its trap
		signals <- unix.SIGUSR1
		io.Copy(io.Discard, out)
	}()
	x, err := connect(t, &Server{}).Exec(context.Background(), sh("trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"),
		Streams{In: endless{}, Out: in, Err: io.Discard, Signals: signals})
	if err != nil || x.Status != 9 {
		t.Errorf("%+v, %v", x, err)
	}
}

// endless input.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestHostLeaves: the command ends with the host.
func TestHostLeaves(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s := &Server{Finished: func(*exec.Cmd) { close(ended) }}
	out, in := io.Pipe()
	go func() {
		io.ReadFull(out, make([]byte, 6))
		cancel()
	}()
	if _, err := connect(t, s).Exec(ctx, sh("echo ready; exec sleep 1000"), Streams{Out: in, Err: io.Discard}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the command goes on")
	}
}

func TestTerminalEvents(t *testing.T) {
	out, in := io.Pipe()
	resize := make(chan unix.Winsize, 1)
	typed, keys := io.Pipe()
	go func() {
		io.ReadFull(out, make([]byte, 7)) // "ready\r\n"
		resize <- unix.Winsize{Row: 44, Col: 99}
		buf := make([]byte, 100)
		out.Read(buf) // "changed"
		keys.Write([]byte("\x03"))
		io.Copy(io.Discard, out)
	}()
	x, err := connect(t, &Server{}).Exec(context.Background(), Exec{TTY: true, Rows: 10, Cols: 10, Argv: []string{"sh", "-c",
		"stty -echo; trap 'test \"$(stty size)\" = \"44 99\" && echo changed' WINCH; trap 'exit 7' INT; echo ready; while :; do sleep 0.01; done"}},
		Streams{In: typed, Out: in, Resize: resize})
	if err != nil || x.Status != 7 {
		t.Errorf("%+v, %v", x, err)
	}
}

// TestEscape: an archive cannot write outside its directory.
func TestEscape(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "a", "b")
	os.MkdirAll(inside, 0o755)
	os.Symlink("..", filepath.Join(inside, "up"))
	for _, name := range []string{"../out", "../../out", "/../out", "x/../../out", "up/out"} {
		archive := tarOf(t, tar.Header{Name: name})
		err := connect(t, &Server{}).PutArchive(t.Context(), bytes.NewReader(archive), inside)
		if err == nil && name != "/../out" { // which is /out
			t.Errorf("%q is taken", name)
		}
		for _, p := range []string{filepath.Join(dir, "out"), filepath.Join(dir, "a", "out")} {
			if _, bad := os.Lstat(p); !errors.Is(bad, fs.ErrNotExist) {
				t.Errorf("%q wrote %s (%v)", name, p, err)
			}
		}
	}
}

func TestVersions(t *testing.T) {
	a, b := pair(t)
	go (&Server{}).Serve(b)
	l := NewLink(a)
	l.SendJSON(FrameRequest, Request{Version: Version + 1, Op: OpSync})
	if _, err := reply(l); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("an agent of another version says %v", err)
	}
	a, b = pair(t)
	told := make(chan error, 2)
	go Greet(a, func(err error) { told <- err })
	NewLink(b).SendJSON(FrameHello, Hello{Version + 1})
	var mismatch *MismatchError
	if err := <-told; !errors.As(err, &mismatch) {
		t.Errorf("the host says %v", err)
	}
	b.Close()
}

// FuzzServe sends a server anything.
func FuzzServe(f *testing.F) {
	f.Add([]byte{FrameRequest, 2, 0, 0, 0, '{', '}'})
	f.Add([]byte("\x02\x37\x00\x00\x00" + `{"version":1,"op":"copy in","in":{"to":"/tmp"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Contains(b, []byte("exec")) || bytes.Contains(b, []byte("copy in")) || bytes.Contains(b, []byte("time")) {
			return // it would do as it is told
		}
		var s Server
		s.Shutdown = func(bool) {}
		s.Serve(&fake{Reader: bytes.NewReader(b)})
		l := NewLink(&fake{Reader: bytes.NewReader(b)})
		for {
			if _, _, err := l.Receive(); err != nil {
				break
			}
		}
		for _, x := range []*extraction{{to: t.TempDir()}, {to: t.TempDir() + "/y", top: "x", base: "x", limit: 1 << 20}, {to: t.TempDir(), top: "x", content: true}} {
			x.unpack(&reader{l: NewLink(&fake{Reader: bytes.NewReader(b)}), kind: FrameStdin})
		}
	})
}

type fake struct{ io.Reader }

func (fake) Write(p []byte) (int, error) { return len(p), nil }
func (fake) Close() error                { return nil }
func (fake) CloseWrite() error           { return nil }
