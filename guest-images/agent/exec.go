package agent

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Path is the PATH of commands that bring none.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Statuses of commands that could not start, as shells and docker have them.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// notFoundError is the error for a program that is nowhere in a PATH.
type notFoundError struct{ name, path string }

// Error implements error.
func (e *notFoundError) Error() string {
	return fmt.Sprintf("%s: command not found in the guest (PATH=%s)", e.name, e.path)
}

// idle is how long an output may stay silent, after the command has ended, before
// it is taken for that of something it left behind.
const idle = 200 * time.Millisecond

// exec runs a command with its streams on the link.
func (s *Server) exec(l *Link, e *Exec) Exit {
	if s.Ready != nil {
		s.Ready()
	}
	e = s.Container.complete(e)
	c, err := s.command(e)
	if err != nil {
		return cannotStart(err)
	}
	var streams *streams
	if e.TTY {
		streams, err = openPTY(c, e)
	} else {
		streams, err = openPipes(c)
	}
	if err != nil {
		return cannotStart(err)
	}
	defer streams.close()
	if cred := c.SysProcAttr.Credential; cred != nil {
		for _, f := range streams.theirs { // who opens /dev/stdout or its terminal again needs the right to
			f.Chown(int(cred.Uid), -1)
		}
	}
	if s.Start != nil {
		err = s.Start(c)
	} else {
		err = c.Start()
	}
	streams.started()
	if err != nil {
		return cannotStart(startError(c, e.User, err))
	}
	ended := make(chan struct{})
	var outputs sync.WaitGroup
	outputs.Go(func() { copyOutput(writer{l, FrameStdout}, streams.out, ended) })
	if streams.err != nil {
		outputs.Go(func() { copyOutput(writer{l, FrameStderr}, streams.err, ended) })
	}
	go s.input(l, c, streams, ended)
	err = c.Wait()
	if s.Finished != nil {
		s.Finished(c)
	}
	close(ended)
	outputs.Wait()
	return exitOf(c.ProcessState, err)
}

func cannotStart(err error) Exit {
	status := statusNotExecutable
	var nowhere *notFoundError
	if errors.Is(err, os.ErrNotExist) || errors.As(err, &nowhere) {
		status = statusNotFound
	}
	return Exit{Status: status, Error: err.Error()}
}

func exitOf(p *os.ProcessState, err error) Exit {
	if p == nil {
		return cannotStart(err)
	}
	w := p.Sys().(syscall.WaitStatus)
	if w.Signaled() {
		return Exit{Status: 128 + int(w.Signal()), Signal: int(w.Signal())}
	}
	return Exit{Status: w.ExitStatus()}
}

// command prepares what a complete request wants.
func (s *Server) command(e *Exec) (*exec.Cmd, error) {
	if len(e.Argv) == 0 || e.Argv[0] == "" {
		return nil, errors.New("no command")
	}
	u, err := findUser(e.User)
	if err != nil {
		return nil, err
	}
	c := &exec.Cmd{Args: e.Argv, Dir: e.Dir}
	if s.Container != nil {
		c.Env = s.Container.environment(u.inContainer(e.User))
	} else {
		c.Env = []string{"PATH=" + Path, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name, "SHELL=" + u.shell}
	}
	if e.TTY {
		c.Env = append(c.Env, "TERM=xterm")
	}
	c.Env = append(c.Env, e.Env...)
	if c.Dir == "" {
		if c.Dir = u.home; !isDir(c.Dir) {
			c.Dir = "/"
		}
	} else if !filepath.IsAbs(c.Dir) {
		return nil, fmt.Errorf("directory %s: not an absolute path", c.Dir)
	} else if !isDir(c.Dir) {
		return nil, fmt.Errorf("directory %s: %w", c.Dir, os.ErrNotExist)
	}
	if c.Path, err = lookPath(e.Argv[0], c.Dir, c.Env); err != nil {
		return nil, err
	}
	if s.Container == nil {
		c.Env = append([]string{"PWD=" + c.Dir}, c.Env...) // which may be a link that others do not see
	}
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: e.TTY}
	if e.User != "" {
		c.SysProcAttr.Credential = &u.credential
	}
	return c, nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// lookPath finds a program by the PATH of the environment that it will have.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, executable(name, path)
	}
	var list string
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			list = p
		}
	}
	var found error = &notFoundError{name, list}
	for _, d := range filepath.SplitList(list) {
		path := filepath.Join(d, name)
		err := executable(name, path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			found = err
		}
	}
	return "", found
}

func executable(name, path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, errors.Unwrap(err))
	case st.IsDir() || st.Mode()&0o111 == 0:
		return fmt.Errorf("%s: %w", name, os.ErrPermission)
	}
	return nil
}

// account is a user of the guest.
type account struct {
	name, home, shell string
	credential        syscall.Credential
	known             bool // it is in /etc/passwd
}

// findUser finds USER or UID, with :GROUP or :GID.
func findUser(spec string) (*account, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "root"
	}
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	known := err == nil
	if !known {
		n, bad := strconv.ParseUint(name, 10, 32)
		switch {
		case bad == nil: // one without a name can run things too
			u = &user.User{Uid: name, Gid: strconv.FormatUint(n, 10), Username: name, HomeDir: "/"}
		case name == "root": // a guest without /etc/passwd
			u = &user.User{Uid: "0", Gid: "0", Username: name, HomeDir: "/root"}
		default:
			return nil, fmt.Errorf("the guest has no user %q", name)
		}
	}
	a := &account{name: u.Username, home: u.HomeDir, shell: loginShell(u.Username), known: known}
	id := func(s string) uint32 {
		n, _ := strconv.ParseUint(s, 10, 32)
		return uint32(n)
	}
	a.credential = syscall.Credential{Uid: id(u.Uid), Gid: id(u.Gid)}
	if groups, err := u.GroupIds(); err == nil {
		for _, g := range groups {
			a.credential.Groups = append(a.credential.Groups, id(g))
		}
	}
	if hasGroup {
		gid := group
		if g, err := user.LookupGroup(group); err == nil {
			gid = g.Gid
		} else if _, err := strconv.ParseUint(group, 10, 32); err != nil {
			return nil, fmt.Errorf("the guest has no group %q", group)
		}
		a.credential.Gid, a.credential.Groups = id(gid), nil
	}
	return a, nil
}

// loginShell is a user's shell by /etc/passwd.
func loginShell(name string) string {
	b, _ := os.ReadFile("/etc/passwd")
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Split(line, ":"); len(f) == 7 && f[0] == name && f[6] != "" {
			return f[6]
		}
	}
	return "/bin/sh"
}

// streams are the agent's ends of a command's streams.
type streams struct {
	in, out, err *os.File
	tty          bool
	theirs       []*os.File // the command's ends
}

// openPipes gives a command pipes.
func openPipes(c *exec.Cmd) (*streams, error) {
	s := &streams{}
	var files [6]*os.File
	for i := 0; i < len(files); i += 2 {
		r, w, err := os.Pipe()
		if err != nil {
			for _, f := range files[:i] {
				f.Close()
			}
			return nil, err
		}
		files[i], files[i+1] = r, w
	}
	c.Stdin, s.in = files[0], files[1]
	s.out, c.Stdout = files[2], files[3]
	s.err, c.Stderr = files[4], files[5]
	s.theirs = []*os.File{files[0], files[3], files[5]}
	return s, nil
}

// openPTY gives a command a terminal.
func openPTY(c *exec.Cmd, e *Exec) (*streams, error) {
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s := &streams{in: far, out: far, tty: true}
	var n int
	if err = control(far, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		var err error
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	}); err != nil {
		s.close()
		return nil, err
	}
	s.resize(e.Rows, e.Cols)
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		s.close()
		return nil, err
	}
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	s.theirs = []*os.File{tty}
	return s, nil
}

// control does something with a file's descriptor, and leaves it pollable.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	err = raw.Control(func(fd uintptr) { done = do(int(fd)) })
	return errors.Join(err, done)
}

func (s *streams) resize(rows, cols uint16) {
	if s.tty && rows > 0 && cols > 0 {
		control(s.in, func(fd int) error {
			return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
	}
}

// started closes the command's ends.
func (s *streams) started() {
	for _, f := range s.theirs {
		f.Close()
	}
	s.theirs = nil
}

func (s *streams) close() {
	s.started()
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			f.Close()
		}
	}
}

// copyOutput sends what comes until its end, or until the command has ended and
// nothing comes any more.
func copyOutput(w io.Writer, from *os.File, ended <-chan struct{}) {
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-ended:
			from.SetReadDeadline(time.Now().Add(idle))
		case <-stop:
		}
	}()
	buf := make([]byte, MaxFrame)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// In a busy guest what the command wrote may lie there longer than that.
			n, err = readNow(from, buf)
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			select {
			case <-ended:
				from.SetReadDeadline(time.Now().Add(idle))
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// readNow reads what there is already. Nothing at all is io.EOF.
func readNow(from *os.File, buf []byte) (n int, err error) {
	err = control(from, func(fd int) error {
		n, err = unix.Read(fd, buf)
		return err
	})
	if n <= 0 {
		return 0, cmp.Or(err, io.EOF)
	}
	return n, nil
}

// endOfTransmission is what a terminal takes for the end of its input.
const endOfTransmission = 4

// input obeys the host until the command has ended. A host that goes away takes the
// command with it.
func (s *Server) input(l *Link, c *exec.Cmd, streams *streams, ended <-chan struct{}) {
	data := make(chan []byte, inputWindow+1) // the end has no place in the window
	defer close(data)
	go feed(l, streams, data)
	signal := func(n unix.Signal) {
		select {
		case <-ended: // its number may be another's by now
		default:
			unix.Kill(-c.Process.Pid, n)
		}
	}
	for {
		kind, b, err := l.Receive()
		if err != nil {
			signal(unix.SIGHUP)
			select {
			case <-ended:
			case <-time.After(time.Second):
				signal(unix.SIGKILL)
			}
			return
		}
		switch {
		case kind == FrameStdin:
			select {
			case data <- bytes.Clone(b):
			default: // beyond the window
				return
			}
		case kind == FrameResize && len(b) == 4:
			streams.resize(binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]))
		case kind == FrameSignal && len(b) == 1:
			signal(unix.Signal(b[0]))
		}
	}
}

// feed gives a command its input.
func feed(l *Link, streams *streams, data <-chan []byte) {
	for b := range data {
		switch {
		case len(b) > 0:
			streams.in.Write(b) // it may have closed its input, which is its own affair
			l.Send(FrameTaken, nil)
		case streams.tty:
			streams.in.Write([]byte{endOfTransmission})
		default:
			streams.in.Close()
		}
	}
}
