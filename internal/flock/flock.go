// Package flock locks whole files (flock(2)), and can give up.
package flock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is the error for a lock that another open file has.
var ErrBusy = errors.New("in use")

// check is how often a lock is tried that somebody else has: no lock can be waited for and
// given up.
const check = 20 * time.Millisecond

// Try takes a lock, unix.LOCK_SH or unix.LOCK_EX, which lasts until the file is closed. It does
// not wait: the error may be ErrBusy.
func Try(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrBusy
		}
		return err
	}
}

// Current is Try for a file that others may replace or remove by its name: os.ErrNotExist if
// somebody has. Who has an exclusive lock can be sure of the name until he closes the file.
func Current(f *os.File, how int) error {
	if err := Try(f, how); err != nil {
		return err
	}
	return Named(f)
}

// Named returns an os.ErrNotExist unless the file is the one of its name still.
func Named(f *os.File) error {
	now, err := os.Stat(f.Name())
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !os.SameFile(now, st) {
		err = &os.PathError{Op: "lock", Path: f.Name(), Err: os.ErrNotExist}
	}
	return err
}

// Lock takes a lock as Try does, or waits for it until ctx ends, with whose cause it ends then.
// waits, which may be nil, is called once before it waits.
func Lock(ctx context.Context, f *os.File, how int, waits func()) error {
	for {
		err := Try(f, how)
		if !errors.Is(err, ErrBusy) {
			return err
		}
		if waits != nil {
			waits()
			waits = nil
		}
		select {
		case <-time.After(check):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
