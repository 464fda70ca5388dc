package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGiveUp keeps the reason why a snapshot could not be used, for a day.
func TestGiveUp(t *testing.T) {
	w := &warmStart{filepath.Join(t.TempDir(), "warm", "key")}
	if _, ok := w.givenUp(); ok {
		t.Error("given up before it was tried")
	}
	os.MkdirAll(w.dir, 0o700)
	os.WriteFile(filepath.Join(w.dir, "memory"), []byte("x"), 0o600)
	w.giveUp(errors.New("no XSAVE here"))
	if why, ok := w.givenUp(); !ok || why != "no XSAVE here" {
		t.Errorf("given up: %v, %q", ok, why)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "memory")); err == nil {
		t.Error("the snapshot is still there")
	}
	if w.open(newRunFlags()) {
		t.Error("there is a snapshot to go on from")
	}
	w.giveUp(errors.New("again"))
	old := time.Now().Add(-2 * unusableFor)
	os.Chtimes(filepath.Join(w.dir, unusable), old, old)
	if _, ok := w.givenUp(); ok {
		t.Error("given up for ever")
	}
}
