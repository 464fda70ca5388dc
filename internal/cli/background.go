package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmm/vm/registry"
)

// What a process in the background says on readyFD is heard by the one who started it.
const (
	readyFD   = 3
	hearsWord = "hears" // a signal ends it from now on: the default does not end number 1 of a namespace
	readyWord = "ready"
)

// isReady is set once the one who started this process need not be there any more.
var isReady atomic.Bool

// holdStarter ends this process if the one who started it goes before it is ready.
func holdStarter() error {
	if _, err := unix.FcntlInt(readyFD, unix.F_GETFD, 0); err != nil {
		return usage("nobody listens to a process in the background: %w", err)
	}
	unix.CloseOnExec(readyFD) // its own children do not keep the one waiting who started it
	go endWithStarter()
	_, err := unix.Write(readyFD, []byte(hearsWord+"\n"))
	return err
}

// endWithStarter ends a process whose starter has gone before it was ready.
func endWithStarter() {
	fds := []unix.PollFd{{Fd: readyFD}}
	for {
		if _, err := unix.Poll(fds, -1); err == nil || !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if fds[0].Revents&unix.POLLERR != 0 && !isReady.Load() {
		os.Exit(statusFailed)
	}
}

// detach runs the session in a process in the background, and returns the name of its VM
// when that runs. When ctx ends before, the process is ended.
func (s *session) detach(ctx context.Context) (name string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	c, err := s.startBackground(ctx, w)
	w.Close()
	if err != nil {
		return "", err
	}
	lines := bufio.NewReader(r)
	defer endWith(ctx, c, lines)()
	// A line and not all: the other side looks at the pipe for longer.
	said, err := lines.ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	if name, ok := strings.CutPrefix(strings.TrimSpace(said), readyWord+" "); ok && registry.ValidName(name) {
		return name, nil
	}
	// It has told why on standard error.
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		told := &exitError{exit.ExitCode(), nil}
		if errors.As(context.Cause(ctx), &told) { // it was a signal that came here
			told = &exitError{told.status, nil}
		}
		return "", told
	}
	return "", fmt.Errorf("the VM's process ended: %v", err)
}

// endWith waits until a process in the background hears signals, and has ctx's end, earlier or later, end it, until
// stop is called.
func endWith(ctx context.Context, c *exec.Cmd, said *bufio.Reader) (stop func() bool) {
	said.ReadString('\n') // hearsWord, or nothing: then it has ended
	return context.AfterFunc(ctx, func() { c.Process.Signal(unix.SIGTERM) })
}

// startBackground starts the process, which says on w when it is ready, and has more files after that; in
// namespaces that are of use, if the host allows them.
func (s *session) startBackground(ctx context.Context, w *os.File, more ...*os.File) (*exec.Cmd, error) {
	var c *exec.Cmd
	err := startBest(s.isolations(), func(how isolation) (err error) {
		s.NoPID = how.noPID
		if c, err = s.process(context.WithoutCancel(ctx), self); err != nil { // what is ready stays
			return err
		}
		c.Stderr = os.Stderr                          // until it is ready
		c.ExtraFiles = append([]*os.File{w}, more...) // from readyFD on
		c.SysProcAttr = how.attributes()
		return c.Start()
	})
	return c, err
}

// background is what a VM in the background has in the place of a terminal.
type background struct {
	console *logWriter
	output  *logWriter // the command's output, and vmm's own messages
}

// openBackground makes the logs of a VM in the background.
func openBackground(dir *registry.Entry) (*background, error) {
	console, err := newLog(dir.ConsoleLog())
	if err != nil {
		return nil, err
	}
	output, err := newLog(dir.OutputLog())
	if err != nil {
		console.close()
		return nil, err
	}
	return &background{console, output}, nil
}

// ready tells the one who started this process that it can go, and takes its streams away.
func (b *background) ready(name string) error {
	for _, fd := range []int{1, 2} {
		if err := unix.Dup2(int(b.output.file.Fd()), fd); err != nil {
			return err
		}
	}
	isReady.Store(true)
	_, err := unix.Write(readyFD, []byte(readyWord+" "+name+"\n"))
	return err
}

func (b *background) close() {
	b.console.close()
	b.output.close()
}

// logSize is where a log begins anew; the one before it is kept, with
// registry.OldLog at the end of its name.
const logSize = 4 << 20

// logWriter is a log of bounded size.
type logWriter struct {
	path string
	mu   sync.Mutex
	file *os.File
	size int64
}

func newLog(path string) (*logWriter, error) {
	f, err := registry.Open(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat() // a VM that was started again goes on with its log
	if err != nil {
		f.Close()
		return nil, err
	}
	return &logWriter{path: path, file: f, size: st.Size()}, nil
}

// Write implements io.Writer.
func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size += int64(len(p)); l.size > logSize {
		if err := os.Rename(l.path, l.path+registry.OldLog); err == nil {
			if f, err := registry.Open(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND); err == nil {
				l.file.Close()
				l.file, l.size = f, int64(len(p))
			}
		}
	}
	return l.file.Write(p)
}

func (l *logWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
}
