package guestimages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOnceContext: who waits for what another process makes ends with its context.
func TestOnceContext(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	b := Builder{Log: onWrite(func() { cancel(enough) })}
	_, err := new(Builder).Once(t.Context(), "x", func(context.Context, string) error {
		_, err := b.Once(ctx, "x", func(context.Context, string) error { return errors.New("twice at a time") })
		return err
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
}

// onWrite calls a function when something is written.
type onWrite func()

// Write implements io.Writer.
func (f onWrite) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

// TestBuildContext: a kernel's build ends with its context, and so does what it has
// started.
func TestBuildContext(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\ntrap 'kill $compiler; exit 2' TERM\nsleep 1000 & compiler=$!\necho CC\nwait\n"
	if err := os.WriteFile(filepath.Join(dir, "make"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	b := Builder{Progress: func(_ string, done, total int) {
		if done != 1 || total != buildLines {
			t.Errorf("%d of %d lines", done, total)
		}
		cancel()
	}}
	if err := b.make(ctx, dir); err == nil {
		t.Error("it was built")
	}
}

// TestLeftRunning: what a program has started is gone when its context has ended, also if the
// program leaves it behind and it does not listen.
func TestLeftRunning(t *testing.T) {
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	script := "sh -c 'trap \"\" TERM; echo $$ >" + pid + ".new; mv " + pid + ".new " + pid + "; while :; do sleep 0.01; done' >/dev/null 2>&1 & wait"
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(pid); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := command(ctx, dir, "sh", "-c", script); err == nil {
		t.Fatal("it ended well")
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	const tries = 1000
	for range tries { // what was killed may take a moment
		if unix.Kill(n, 0) != nil || isZombie(n) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	unix.Kill(n, unix.SIGKILL)
	t.Errorf("process %d is still there", n)
}

// isZombie reports whether a process has ended, and nobody has asked how.
func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}
