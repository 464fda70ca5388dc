package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// commandInput is what a command in a guest reads: nothing without -i, which leaves all of
// standard input to whoever comes next, such as the shell whose loop this process is in.
func commandInput(ctx context.Context, interactive, tty bool, stdin *os.File) io.Reader {
	switch {
	case !interactive && tty:
		return silence{ctx} // a terminal whose keys nobody presses; its end would end a shell
	case !interactive:
		return nil
	case term.IsTerminal(int(stdin.Fd())):
		return &foreground{ctx, stdin, processGroup}
	}
	return stdin
}

// silence says nothing until the context ends.
type silence struct{ ctx context.Context }

// Read implements io.Reader.
func (s silence) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, io.EOF
}

// processGroup is this process's; the jail does not let it ask later.
var processGroup = unix.Getpgrp()

// foregroundEvery is how often a process in the background looks whether it is in the
// foreground, if somebody types.
const foregroundEvery = 100 * time.Millisecond

// foreground reads a terminal while that is this process's: who reads from the background is
// stopped (SIGTTIN), and would take what is typed for others.
type foreground struct {
	ctx   context.Context
	tty   *os.File
	group int
}

// Read implements io.Reader.
func (f *foreground) Read(p []byte) (int, error) {
	fd := int(f.tty.Fd())
	for f.ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return 0, err
		}
		// A terminal that is not the controlling one has no foreground, and stops nobody.
		if g, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || g == f.group {
			return f.tty.Read(p)
		}
		select {
		case <-time.After(foregroundEvery):
		case <-f.ctx.Done():
		}
	}
	return 0, io.EOF
}

// warnUnread tells, in a line, that a command without input was given some by a pipe.
func warnUnread(w io.Writer, stdin *os.File) {
	var st unix.Stat_t
	if unix.Fstat(int(stdin.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return
	}
	if n, err := unix.IoctlGetInt(int(stdin.Fd()), unix.TIOCINQ); err == nil && n > 0 {
		fmt.Fprintln(w, "vmm: the command has not read what comes by the pipe on standard input: -i gives it that")
	}
}
