package output

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, path, text string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != text {
		t.Errorf("%s holds %q, %v; want %q", path, b, err, text)
	}
}

// TestRefused: where a guest may have put something, nothing is opened, made or emptied.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	share := filepath.Join(dir, "share")
	victim := filepath.Join(dir, "victim")
	for _, d := range []string{share, share + "/deep", dir + "/home"} {
		os.Mkdir(d, 0o755)
	}
	write(t, victim, "mine")
	write(t, share+"/there", "there")
	for link, to := range map[string]string{
		share + "/r.json": "../victim", dir + "/last": "victim", dir + "/dangling": "none", share + "/out": "../home",
		dir + "/into": "share", dir + "/twice": "share/out", dir + "/loop": "loop",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(share + "/deep")
	for path, in := range map[string]bool{
		share + "/r.json": true, share + "/new": true, share + "/there": true, share + "/deep/new": true,
		share + "/out/new":       true, // leads out by a link of the guest's
		share + "/deep/../out/x": true,
		dir + "/into/new":        true,
		dir + "/twice/new":       true,
		"new":                    true,
		"../out/new":             true,
		dir + "/last":            false,
		dir + "/dangling":        false,
		dir + "/loop/x":          false,
		dir + "/victim/x":        false,
		dir + "/none/x":          false,
		dir + "/home":            false,
		"":                       false,
	} {
		f, err := Create(path, Private, []string{dir + "/none", share})
		var guest *paths.GuestError
		if err == nil {
			f.Close()
			t.Errorf("%q was opened", path)
		} else if errors.As(err, &guest) != in {
			t.Errorf("%q: %v", path, err)
		}
	}
	want(t, victim, "mine")
	want(t, share+"/there", "there")
	if left, _ := os.ReadDir(dir + "/home"); len(left) > 0 {
		t.Errorf("%v was made", left)
	}
	if _, err := Open(dir+"/last", Private, nil); !errors.Is(err, ErrLink) {
		t.Errorf("a link: %v", err)
	}
	// A directory that a link leads to is the user's own matter, where no guest can write.
	f, err := Create(dir+"/into/fine", Private, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	want(t, share+"/fine", "")
}

// TestFile: what is made, kept, emptied and removed, and with which mode.
func TestFile(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		before string // "" is not there
		mode   fs.FileMode
		write  string // "" is nothing
		after  string // "" is not there
		perm   fs.FileMode
	}{
		{"new", "", Private, "text", "text", 0o600},
		{"report", "", Report, "text", "text", 0o644},
		{"unused", "", Report, "", "", 0},
		{"shorter", "what was longer", Private, "text", "text", 0o644},
		{"kept", "before", Private, "", "before", 0o644},
	} {
		path := filepath.Join(dir, c.name)
		if c.before != "" {
			write(t, path, c.before)
		}
		f, err := Open(path, c.mode, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.write != "" {
			err = f.Replace([]byte(c.write))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		st, err := os.Stat(path)
		if c.after == "" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left: %v", c.name, err)
			}
			continue
		}
		want(t, path, c.after)
		if st.Mode().Perm() != c.perm {
			t.Errorf("%s has mode %v", c.name, st.Mode())
		}
	}
	// One that somebody else has put in its place is not removed.
	path := filepath.Join(dir, "exchanged")
	f, err := Open(path, Private, nil)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	write(t, path, "another's")
	f.Close()
	want(t, path, "another's")
	var none *File
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}

// TestThrough: pipes, devices and /dev/stdout are written to as they are.
func TestThrough(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, path := range []string{fifo, "/dev/null", "/dev/stderr", "/proc/self/fd/2"} {
		f, err := Create(path, Private, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		text := "x"
		if path != fifo {
			text = ""
		}
		if err := errors.Join(f.Replace([]byte(text)), f.Close()); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	b := make([]byte, 2)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "x" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if _, err := os.Lstat(fifo); err != nil {
		t.Error(err)
	}
}

// TestAbandon: of what has not come whole nothing is left, but no device and nobody else's file goes.
func TestAbandon(t *testing.T) {
	dir := t.TempDir()
	name := func(n string) string { return filepath.Join(dir, n) }
	pipe := name("pipe")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(name("old"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, c := range []struct {
		path   string
		during func() error
		stays  bool
	}{
		{name("new"), nil, false}, {name("old"), nil, false}, {pipe, nil, true}, {os.DevNull, nil, true},
		{name("replaced"), func() error {
			return errors.Join(os.Remove(name("replaced")), os.WriteFile(name("replaced"), nil, 0o600))
		}, true},
	} {
		f, err := Create(c.path, Private, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("half")); err != nil {
			t.Error(err)
		}
		if c.during != nil {
			if err := c.during(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Abandon(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(c.path); (err == nil) != c.stays {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}
