package guestinit

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFill copies a tree to an empty directory, and nothing to another.
func TestFill(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	old := time.Unix(1e9, 5)
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	in := func(name string) string { return filepath.Join(from, name) }
	do(fill(from, to)) // nothing
	do(os.MkdirAll(in("dir/sub"), 0o755), os.WriteFile(in("dir/file"), []byte("content"), 0o600), os.Chmod(in("dir/file"), 0o4751), os.Link(in("dir/file"), in("same")),
		os.Symlink("nowhere", in("link")), unix.Mkfifo(in("fifo"), 0o640), os.Chtimes(in("dir/file"), old, old), os.Chmod(in("dir"), 0o500), os.Chtimes(in("dir"), old, old), os.Chmod(from, 0o711))
	defer os.Chmod(in("dir"), 0o700)
	do(fill(from, to))
	defer os.Chmod(filepath.Join(to, "dir"), 0o700)
	for _, name := range []string{".", "dir", "dir/sub", "dir/file", "same", "link", "fifo"} {
		var a, b unix.Stat_t
		do(unix.Lstat(in(name), &a), unix.Lstat(filepath.Join(to, name), &b))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Nlink != b.Nlink || a.Mtim != b.Mtim || name != "." && a.Mode&unix.S_IFMT == unix.S_IFREG && a.Size != b.Size {
			t.Errorf("%s: %+v, and there it was %+v", name, b, a)
		}
	}
	if b, err := os.ReadFile(filepath.Join(to, "same")); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	// One who was killed has left half of it, and another guest has made something beside.
	do(os.MkdirAll(filepath.Join(to, filling, "half/more"), 0o700), os.Remove(filepath.Join(to, "same")), os.WriteFile(filepath.Join(to, "others"), nil, 0o600), fill(from, to))
	for name, want := range map[string]bool{"same": true, "half": false, "others": true, filling: false} {
		if _, err := os.Lstat(filepath.Join(to, name)); (err == nil) != want {
			t.Errorf("filled again, %s: %v", name, err)
		}
	}
	do(os.WriteFile(in("more"), nil, 0o600), fill(from, to))
	if _, err := os.Lstat(filepath.Join(to, "more")); err == nil {
		t.Error("it was filled again")
	}
}

// TestFillTogether: of several guests, one fills a directory.
func TestFillTogether(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(from, strconv.Itoa(i)), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var guests sync.WaitGroup
	for range 4 {
		guests.Go(func() {
			if err := fill(from, to); err != nil {
				t.Error(err)
			}
		})
	}
	guests.Wait()
	if list, err := os.ReadDir(to); err != nil || len(list) != 100 {
		t.Errorf("%d files, %v", len(list), err)
	}
}

// TestFillInUse fills a directory that another guest uses meanwhile: what that makes stays, and what it leads elsewhere is not
// followed.
func TestFillInUse(t *testing.T) {
	from, to, outside := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(dir, name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"file", "dir/file", "taken/file", "link/file"} {
		write(from, name, "image")
	}
	write(to, "file", "guest")
	write(to, "taken", "guest")
	for link, leads := range map[string]string{filling: outside, "link": outside} {
		if err := os.Symlink(leads, filepath.Join(to, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := fill(from, to); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": "guest", "taken": "guest", "dir/file": "image"} {
		if b, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
		t.Errorf("made elsewhere: %v, %v", list, err)
	}
	// One who exchanges all that is made, while it is made.
	many, busy := t.TempDir(), t.TempDir()
	for i := range 200 {
		write(many, fmt.Sprint("d/", i, "/file"), "image")
	}
	stop := make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			made, _ := filepath.Glob(filepath.Join(busy, filling, "d/*"))
			for _, m := range made {
				os.RemoveAll(m)
				os.Symlink(outside, m)
			}
		}
	})
	err := fill(many, busy) // which may fail
	close(stop)
	other.Wait()
	if list, bad := os.ReadDir(outside); bad != nil || len(list) > 0 {
		t.Errorf("made elsewhere: %v, %v (%v)", list, bad, err)
	}
}
