package guestimages

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
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
