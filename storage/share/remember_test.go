package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestStale tells what a guest remembers wrongly that goes on, after each kind of change.
func TestStale(t *testing.T) {
	static := Options{Static: true, ReadOnly: true}
	for _, c := range []struct {
		name string
		do   func(in func(string) string) error
		path string   // that is stale
		dirs []string // whose attributes are
		gone bool     // without SetStale, it is an error
	}{
		{"nothing", func(func(string) string) error { return nil }, "", nil, false},
		{"content", func(in func(string) string) error { return os.WriteFile(in("sub/file"), []byte("changed"), 0o644) }, "sub/file", nil, true},
		{"mode of a file", func(in func(string) string) error { return os.Chmod(in("sub/file"), 0o600) }, "sub/file", nil, true},
		{"owner of a file", func(in func(string) string) error { return os.Chown(in("sub/file"), os.Getuid(), os.Getgid()) }, "sub/file", nil, true},
		{"mode of a directory", func(in func(string) string) error { return os.Chmod(in("sub"), 0o711) }, "sub", nil, true},
		{"mode of the top", func(in func(string) string) error { return os.Chmod(in("."), 0o711) }, ".", nil, true},
		{"another file", func(in func(string) string) error {
			return errors.Join(os.WriteFile(in("new"), nil, 0o644), os.Rename(in("new"), in("sub/file")))
		}, "sub/file", []string{"", "sub"}, true},
		{"a link in its place", func(in func(string) string) error {
			return errors.Join(os.Remove(in("sub/file")), os.Symlink("x", in("sub/file")))
		}, "sub/file", []string{"sub"}, true},
		{"no file", func(in func(string) string) error { return os.Remove(in("sub/file")) }, "sub/file", []string{"sub"}, true},
		{"a directory moved away", func(in func(string) string) error { return os.Rename(in("sub"), in("sub2")) }, "sub", []string{""}, true},
		{"what was missing", func(in func(string) string) error { return os.WriteFile(in("sub/missing"), nil, 0o644) }, "sub", nil, true},
		{"what was missing at the top", func(in func(string) string) error { return os.Symlink("x", in("missing")) }, ".", nil, true},
		{"one of many that were missing", func(in func(string) string) error { return os.Mkdir(in("many/file7"), 0o755) }, "many", nil, true},
		{"beside what was missing", func(in func(string) string) error { return os.WriteFile(in("sub/other"), nil, 0o644) }, "", []string{"sub"}, false},
		{"another name in a list", func(in func(string) string) error { return os.WriteFile(in("listed/other"), nil, 0o644) }, "listed", nil, true},
		{"the content of what was listed", func(in func(string) string) error { return os.WriteFile(in("listed/file"), []byte("x"), 0o644) }, "", nil, false},
		{"what the guest has not heard of", func(in func(string) string) error { return os.WriteFile(in("unseen/file"), nil, 0o644) }, "", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := start(t, static)
			in := func(name string) string { return filepath.Join(g.dir, name) }
			for _, dir := range []string{"sub", "many", "listed", "unseen"} {
				os.Mkdir(in(dir), 0o755)
			}
			os.WriteFile(in("sub/file"), []byte("content"), 0o644)
			os.WriteFile(in("listed/file"), nil, 0o644)
			// The top as it is now: its names are made, for the guest never before.
			f, err := New(g.dir, static)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			g.fs = f
			sub, _ := g.lookup(fuse.FUSE_ROOT_ID, "sub")
			g.lookup(fuse.FUSE_ROOT_ID, "missing")
			g.lookup(sub.NodeId, "file")
			g.lookup(sub.NodeId, "missing")
			many, _ := g.lookup(fuse.FUSE_ROOT_ID, "many")
			for i := range 2 * maxMissing {
				g.lookup(many.NodeId, fmt.Sprint("file", i))
			}
			listed, _ := g.lookup(fuse.FUSE_ROOT_ID, "listed")
			var opened fuse.OpenOut
			f.OpenDir(nil, &fuse.OpenIn{InHeader: head(listed.NodeId)}, &opened)
			f.ReadDir(nil, &fuse.ReadIn{InHeader: head(listed.NodeId), Fh: opened.Fh, Size: 4096}, fuse.NewDirEntryList(make([]byte, 4096), 0))
			f.ReleaseDir(&fuse.ReleaseIn{InHeader: head(listed.NodeId), Fh: opened.Fh})
			state, err := f.Save()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.do(in); err != nil {
				t.Fatal(err)
			}
			load := func(tell func(Stale)) error {
				f, err := New(g.dir, static)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				f.SetStale(tell)
				return f.Load(state)
			}
			var got Stale
			if err := load(func(s Stale) { got = s }); err != nil || got.Path != c.path || !slices.Equal(got.Dirs, c.dirs) {
				t.Errorf("stale: %+v, %v, not %q and %q", got, err, c.path, c.dirs)
			}
			var gone *GoneError
			if err := load(nil); errors.As(err, &gone) != c.gone || err != nil && !c.gone {
				t.Errorf("without SetStale: %v", err)
			}
		})
	}
}

// TestStaleOpen: a guest that has a file open cannot be given a new mount.
func TestStaleOpen(t *testing.T) {
	g := start(t, Options{Static: true, ReadOnly: true})
	path := filepath.Join(g.dir, "file")
	os.WriteFile(path, []byte("content"), 0o644)
	file, _ := g.lookup(fuse.FUSE_ROOT_ID, "file")
	var opened fuse.OpenOut
	if s := g.fs.Open(nil, &fuse.OpenIn{InHeader: head(file.NodeId), Flags: unix.O_RDONLY}, &opened); s != fuse.OK {
		t.Fatal(s)
	}
	state, err := g.fs.Save()
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path, []byte("changed"), 0o644)
	f, err := New(g.dir, Options{Static: true, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.SetStale(func(s Stale) { t.Errorf("told of %+v", s) })
	var gone *GoneError
	if err := f.Load(state); !errors.As(err, &gone) || gone.Path != "file" {
		t.Errorf("%v", err)
	}
}

// TestStaleHidden: what is hidden from a guest that goes on need not be what was hidden before.
func TestStaleHidden(t *testing.T) {
	for _, c := range []struct {
		name        string
		before, now []string
		path        string // that is stale
		exposed     string // that may be in the guest's memory
	}{
		{"the same", []string{"sub"}, []string{"sub"}, "", ""},
		{"what the guest has not heard of", nil, []string{"unseen", "sub/missing"}, "", ""},
		{"no more what it has not heard of", []string{"unseen"}, nil, "", ""},
		{"a directory", nil, []string{"empty"}, "empty", ""},
		{"a file", nil, []string{"sub/file"}, "", "sub/file"},
		{"a directory with a file", nil, []string{"sub"}, "", "sub/file"},
		{"a directory no more", []string{"sub"}, nil, "sub", ""},
		{"a file no more", []string{"sub/file"}, nil, "sub/file", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range []string{"sub", "empty", "unseen"} {
				os.Mkdir(filepath.Join(dir, d), 0o755)
			}
			os.WriteFile(filepath.Join(dir, "sub/file"), []byte("content"), 0o644)
			share := func(hide []string) *guest {
				f, err := New(dir, Options{Static: true, ReadOnly: true, Hide: hide})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return &guest{t, f, dir}
			}
			g := share(c.before)
			sub, _ := g.lookup(fuse.FUSE_ROOT_ID, "sub")
			g.lookup(sub.NodeId, "file")
			g.lookup(fuse.FUSE_ROOT_ID, "empty")
			state, err := g.fs.Save()
			if err != nil {
				t.Fatal(err)
			}
			var got Stale
			now := share(c.now).fs
			now.SetStale(func(s Stale) { got = s })
			err = now.Load(state)
			var gone *GoneError
			if errors.As(err, &gone); err != nil && (gone == nil || !gone.Hidden || gone.Path != c.exposed) || (err != nil) != (c.exposed != "") {
				t.Errorf("%v, want %q", err, c.exposed)
			}
			if got.Path != c.path {
				t.Errorf("stale: %q, want %q", got.Path, c.path)
			}
		})
	}
}
