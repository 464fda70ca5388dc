package flock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// opener opens a file, or makes it, each time anew.
func opener(t *testing.T, path string) func() *os.File {
	return func() *os.File {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
}

// TestLock: who waits is told so once, gets the lock when it is free, and may give up.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := opener(t, path)
	first, second := open(), open()
	if err := Lock(t.Context(), first, unix.LOCK_EX, func() { t.Error("it waits for a free lock") }); err != nil {
		t.Fatal(err)
	}
	if err := Try(second, unix.LOCK_SH); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := Lock(ctx, second, unix.LOCK_SH, func() { cancel(enough) }); !errors.Is(err, enough) {
		t.Error(err)
	}
	waits := 0
	if err := Lock(t.Context(), second, unix.LOCK_EX, func() { waits++; first.Close() }); err != nil || waits != 1 {
		t.Errorf("%d waits, %v", waits, err)
	}
}

// TestCurrent: a lock on a file that is not the one of its name any more is none.
func TestCurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := opener(t, path)
	first := open()
	if err := Current(first, unix.LOCK_SH); err != nil {
		t.Error(err)
	}
	if err := Current(open(), unix.LOCK_EX); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Current(first, unix.LOCK_SH); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	open()
	if err := Current(first, unix.LOCK_SH); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("replaced: %v", err)
	}
}
