package cli

import (
	"bufio"
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

// detachedEnv tells the process of a VM in the background that it is one; what it
// says on file descriptor readyFD is heard by the one who started it.
const (
	detachedEnv = "VMM_DETACHED"
	readyFD     = 3
	readyWord   = "ready"
)

// isDetached tells whether this process is a VM in the background. Its own children
// are not, and do not keep the one waiting who started it.
var isDetached = sync.OnceValue(func() bool {
	is := os.Getenv(detachedEnv) != ""
	if is {
		os.Unsetenv(detachedEnv)
		unix.CloseOnExec(readyFD)
		go endWithStarter()
	}
	return is
})

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

// detach starts this very command again in the background, and prints the name of
// its VM when that runs.
func detach(out io.Writer) error {
	name, err := startDetached()
	if err == nil {
		fmt.Fprintln(out, name)
	}
	return failed(err)
}

// startDetached is detach without a word.
func startDetached() (name string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), detachedEnv+"=1")
	c.Stderr = os.Stderr // until it is ready
	c.ExtraFiles = []*os.File{w}
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		w.Close()
		return "", err
	}
	w.Close()
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
	hub    *consoleHub
	output *logWriter // the command's output, and vmm's own messages
}

// openBackground makes the logs of a VM in the background.
func openBackground(dir *registry.Entry) (*background, error) {
	hub, err := newConsoleHub(dir.ConsoleLog())
	if err != nil {
		return nil, err
	}
	output, err := newLog(dir.OutputLog())
	if err != nil {
		hub.close()
		return nil, err
	}
	return &background{hub, output}, nil
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
	if w == nil {
		return errors.New(detachedEnv + " is for vmm itself")
	}
	_, err := fmt.Fprintln(w, readyWord, name)
	return errors.Join(err, w.Close())
}

// console is the hub as a console.
func (b *background) console() *hostConsole {
	return &hostConsole{Writer: b.hub, in: b.hub.in, restore: func() {}}
}

func (b *background) close() {
	b.hub.close()
	b.output.close()
}
