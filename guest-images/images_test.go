package guestimages

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

func TestInitramfs(t *testing.T) {
	b, err := initramfs([]byte("init"), &busyboxFiles{[]byte("bb"), []string{"busybox", "sh", "ls"}})
	if err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, r := range records {
		got[r.Name] = r.Mode
	}
	for name, mode := range map[string]uint64{"init": 0o100755, "bin/busybox": 0o100755, "bin/sh": 0o120777, "bin/ls": 0o120777,
		"dev/console": 0o020600, "dev/null": 0o020666, "proc": 0o040755, "dev": 0o040755} {
		if got[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, got[name], mode)
		}
	}
}

// TestOnce makes an image once, and leaves nothing of one that failed.
func TestOnce(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var b Builder
	made := 0
	broken := errors.New("broken")
	if _, err := b.Once(context.Background(), "x", func(context.Context, string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("err = %v", err)
	}
	for range 2 {
		dir, err := b.Once(context.Background(), "x", func(_ context.Context, dir string) error {
			made++
			return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
			t.Error(err)
		}
	}
	cache, _ := CacheDir()
	left, _ := filepath.Glob(filepath.Join(cache, "*"))
	if made != 1 || len(left) != 1 {
		t.Errorf("made %d times, left %v", made, left)
	}
}

func TestCheckConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	os.WriteFile(path, []byte(kernelConfig), 0o644)
	if err := checkConfig(path); err != nil {
		t.Error(err)
	}
	os.WriteFile(path, []byte(strings.Replace(kernelConfig, "CONFIG_ACPI=y\n", "", 1)), 0o644)
	if err := checkConfig(path); err == nil || !strings.Contains(err.Error(), "CONFIG_ACPI=y") {
		t.Errorf("err = %v", err)
	}
}
