package guestimages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/flock"
	"vmm/internal/tail"
)

// CacheDir is where guest images are kept: vmm in the user's cache directory.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for guest images: %w", err)
	}
	return filepath.Join(dir, "vmm"), nil
}

// Builder makes images. The zero value is silent.
type Builder struct {
	// Log receives a line for every step; nil drops them.
	Log io.Writer
	// Progress is told how far a long step is, in units of its own.
	Progress func(step string, done, total int)
}

func (b *Builder) log(format string, args ...any) {
	if b.Log != nil {
		fmt.Fprintf(b.Log, format+"\n", args...)
	}
}

func (b *Builder) progress(step string, done, total int) {
	if b.Progress != nil {
		b.Progress(step, done, total)
	}
}

// Once returns the directory of that name in the cache, and makes it first if it is
// not there: make fills an empty directory, which then takes the name. A lock keeps
// a second process from doing the same work at the same time.
func (b *Builder) Once(ctx context.Context, name string, make func(ctx context.Context, dir string) error) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	final := filepath.Join(cache, name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(final+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	waits := func() { b.log("waiting for another process that makes %s", name) }
	if err := flock.Lock(ctx, lock, unix.LOCK_EX, waits); err != nil {
		return "", err
	}
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	work, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := make(ctx, work); errors.Is(err, ErrNoApt) { // which says all
		return "", ErrNoApt
	} else if err != nil {
		return "", fmt.Errorf("making %s: %w", name, err)
	}
	if err := os.Rename(work, final); err != nil {
		return "", err
	}
	os.Remove(final + ".lock")
	return final, os.Chmod(final, 0o755)
}

// endTime is how long a program may take to end when it is told to.
const endTime = 10 * time.Second

// tool is a program that ends with a context, together with those that it has started, which
// have its process group: one that went on could write to a directory that is being removed.
type tool struct {
	*exec.Cmd
	ctx context.Context
}

func newTool(ctx context.Context, name string, args ...string) *tool {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGTERM) }
	c.WaitDelay = endTime
	return &tool{c, ctx}
}

// Run runs it to its end.
func (p *tool) Run() error {
	err := p.Cmd.Run()
	if p.ctx.Err() != nil && p.Process != nil {
		unix.Kill(-p.Process.Pid, unix.SIGKILL) // those that were told to end and have not
	}
	return err
}

// command runs a program and shows the end of its output if it fails.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := newTool(ctx, name, args...)
	c.Dir = dir
	// Programs of administrators are not in everybody's PATH.
	c.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if c.Err != nil {
		if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
			c.Path, c.Err = path, nil
		}
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.Join(tail.Lines(out.String(), 10), "\n"))
	}
	return out.String(), nil
}
