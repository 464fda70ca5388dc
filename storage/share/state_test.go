package share

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestState: files that the guest knows, has open and has locked are so for another
// process too, and those that have changed are refused.
func TestState(t *testing.T) {
	g := start(t, Options{})
	os.MkdirAll(filepath.Join(g.dir, "sub"), 0o755)
	path := filepath.Join(g.dir, "sub", "file")
	os.WriteFile(path, []byte("content"), 0o644)
	sub, _ := g.lookup(fuse.FUSE_ROOT_ID, "sub")
	file, s := g.lookup(sub.NodeId, "file")
	if s != fuse.OK {
		t.Fatal(s)
	}
	var opened fuse.OpenOut
	if s := g.fs.Open(nil, &fuse.OpenIn{InHeader: head(file.NodeId), Flags: unix.O_RDWR}, &opened); s != fuse.OK {
		t.Fatal(s)
	}
	lock := &fuse.LkIn{InHeader: head(file.NodeId), Fh: opened.Fh, Owner: 9, Lk: fuse.FileLock{Start: 2, End: 4, Typ: unix.F_WRLCK}}
	if s := g.fs.SetLk(nil, lock); s != fuse.OK {
		t.Fatal(s)
	}
	state, err := g.fs.Save()
	if err != nil {
		t.Fatal(err)
	}
	load := func() (*FS, error) {
		f, err := New(g.dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, f.Load(state)
	}
	// The locks are free once the first process has gone.
	n := g.fs.node(file.NodeId)
	n.locks.close()
	n.put()
	f, err := load()
	if err != nil {
		t.Fatal(err)
	}
	r, s := f.Read(nil, &fuse.ReadIn{InHeader: head(file.NodeId), Fh: opened.Fh, Size: 100}, nil)
	if s != fuse.OK {
		t.Fatal(s)
	}
	b, _ := r.Bytes(make([]byte, 100))
	if r.Done(); string(b) != "content" {
		t.Errorf("read %q", b)
	}
	l := f.node(file.NodeId)
	defer l.put()
	if held, err := l.locks.save(); err != nil || len(held) != 1 || held[0] != (LockState{9, true, 2, 3}) {
		t.Errorf("locks %v, %v", held, err)
	}
	var out fuse.EntryOut
	h := head(sub.NodeId)
	if s := f.Lookup(nil, &h, "file", &out); s != fuse.OK || out.NodeId != file.NodeId {
		t.Errorf("the file is node %d, not %d: %v", out.NodeId, file.NodeId, s)
	}
	os.Rename(path, path+".old")
	os.WriteFile(path, []byte("another"), 0o644)
	var gone *GoneError
	if _, err := load(); !errors.As(err, &gone) {
		t.Errorf("another file by the same name: %v", err)
	}
}

// TestStaticState: what the guest keeps in mind must be as it was.
func TestStaticState(t *testing.T) {
	g := start(t, Options{Static: true, ReadOnly: true})
	path := filepath.Join(g.dir, "file")
	os.WriteFile(path, []byte("content"), 0o644)
	os.Mkdir(filepath.Join(g.dir, "sub"), 0o755)
	g.lookup(fuse.FUSE_ROOT_ID, "file")
	sub, _ := g.lookup(fuse.FUSE_ROOT_ID, "sub")
	g.lookup(sub.NodeId, "missing")
	state, err := g.fs.Save()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		do    func()
		stale bool
	}{
		{"nothing", func() {}, false},
		{"a file beside", func() { os.WriteFile(path+"2", nil, 0o644) }, false},
		{"what was missing", func() { os.WriteFile(filepath.Join(g.dir, "sub", "missing"), nil, 0o644) }, true},
		{"content", func() { os.WriteFile(path, []byte("changed"), 0o644) }, true},
	} {
		c.do()
		f, err := New(g.dir, Options{Static: true, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		var gone *GoneError
		if err := f.Load(state); errors.As(err, &gone) != c.stale {
			t.Errorf("%s: %v", c.name, err)
		}
		f.Close()
	}
}
