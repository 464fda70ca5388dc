package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmm/vm/registry"
)

// A process in the background is told its session on file descriptor jobFD, and what it
// says on readyFD is heard by the one who started it.
const (
	backgroundName = "_background"
	readyFD        = 3
	jobFD          = 4
	readyWord      = "ready"
)

// backgroundCommand runs a session that another process has begun. It is not for people.
func backgroundCommand() *cobra.Command {
	return &cobra.Command{
		Use: backgroundName, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, fd := range []int{readyFD, jobFD} {
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
					return usage("%s is for vmm itself", backgroundName)
				}
				unix.CloseOnExec(fd) // its own children do not keep the one waiting who started it
			}
			var s session
			job := os.NewFile(jobFD, "job")
			err := json.NewDecoder(job).Decode(&s)
			job.Close()
			if err != nil {
				return failed(fmt.Errorf("the background process was not told what to run: %w", err))
			}
			go endWithStarter()
			return s.run(cmd.Context())
		},
	}
}

// isReady is set once the one who started this process need not be there any more.
var isReady atomic.Bool

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
	text, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	job, write, err := os.Pipe()
	if err != nil {
		w.Close()
		return "", err
	}
	c := exec.Command("/proc/self/exe", backgroundName)
	c.Stderr = os.Stderr // until it is ready
	c.ExtraFiles = []*os.File{w, job}
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = c.Start()
	w.Close()
	job.Close()
	if err != nil {
		write.Close()
		return "", err
	}
	defer context.AfterFunc(ctx, func() { c.Process.Signal(unix.SIGTERM) })()
	_, err = write.Write(text)
	if err = errors.Join(err, write.Close()); err != nil {
		return "", errors.Join(err, c.Process.Kill())
	}
	// A line and not all: the other side looks at the pipe for longer.
	said, err := bufio.NewReader(r).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	if name, ok := strings.CutPrefix(said, readyWord+" "); ok {
		return strings.TrimSpace(name), nil
	}
	// It has told why on standard error.
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return "", &exitError{exit.ExitCode(), nil}
	}
	return "", fmt.Errorf("the VM's process ended: %v", err)
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

// ready lets the one who started this process go, and takes its streams away.
func (b *background) ready(name string) error {
	for _, fd := range []int{1, 2} {
		if err := unix.Dup2(int(b.output.file.Fd()), fd); err != nil {
			return err
		}
	}
	isReady.Store(true)
	w := os.NewFile(readyFD, "ready")
	_, err := fmt.Fprintln(w, readyWord, name)
	return errors.Join(err, w.Close())
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
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	return &logWriter{path: path, file: f}, err
}

// Write implements io.Writer.
func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size += int64(len(p)); l.size > logSize {
		if err := os.Rename(l.path, l.path+registry.OldLog); err == nil {
			if f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600); err == nil {
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
