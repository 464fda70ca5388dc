package share

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// few lets a test's guests have few open files.
func few(t *testing.T, n int64) {
	t.Helper()
	before := maxDescriptors
	maxDescriptors = func() int64 { return descriptorsOfOthers + n }
	descriptorsOfOthers = descriptors.Load()
	t.Cleanup(func() { maxDescriptors = before })
}

// descriptorsOfOthers are those that other tests have left open.
var descriptorsOfOthers int64

// fill makes directories with files on the host.
func fill(t *testing.T, dir string, dirs, files int) {
	t.Helper()
	for d := range dirs {
		sub := filepath.Join(dir, fmt.Sprint("d", d), "sub")
		os.MkdirAll(sub, 0o755)
		for f := range files {
			name := fmt.Sprint("f", f)
			if err := os.WriteFile(filepath.Join(sub, name), []byte(fmt.Sprint(d, " ", f)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestManyFiles: a guest remembers far more files than it may have open, and uses all of them.
func TestManyFiles(t *testing.T) {
	g := start(t, Options{})
	few(t, 64)
	const dirs, files = 10, 100
	fill(t, g.dir, dirs, files)
	var nodes [dirs][files]uint64
	for d := range dirs {
		for f := range files {
			nodes[d][f] = g.walk(fmt.Sprintf("d%d/sub/f%d", d, f)).NodeId
		}
	}
	if n := descriptors.Load() - descriptorsOfOthers; n > 64 {
		t.Errorf("%d descriptors", n)
	}
	check := func(d, f int) {
		t.Helper()
		var attr fuse.AttrOut
		if s := g.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(nodes[d][f])}, &attr); s != fuse.OK {
			t.Fatalf("%d %d: %v", d, f, s)
		}
		fh, s := g.open(nodes[d][f], unix.O_RDONLY)
		if s != fuse.OK {
			t.Fatalf("%d %d: %v", d, f, s)
		}
		if got, want := g.read(fh, 100), fmt.Sprint(d, " ", f); got != want {
			t.Fatalf("%d %d has %q", d, f, got)
		}
		g.fs.Release(nil, &fuse.ReleaseIn{Fh: fh})
	}
	for f := range files { // across the directories
		for d := range dirs {
			check(d, f)
		}
	}
	var all sync.WaitGroup
	for d := range dirs {
		all.Go(func() {
			for f := range files {
				var attr fuse.AttrOut
				if s := g.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(nodes[d][f])}, &attr); s != fuse.OK {
					t.Errorf("%d %d at once: %v", d, f, s)
				}
			}
		})
	}
	all.Wait()
	// What is saved is all there.
	state, err := g.fs.Save()
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(g.dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Load(state); err != nil {
		t.Fatal(err)
	}
	for d := range dirs {
		var attr fuse.AttrOut
		if s := again.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(nodes[d][d])}, &attr); s != fuse.OK {
			t.Errorf("%d after it was saved: %v", d, s)
		}
	}
}

// TestOpenAgain: a file whose descriptor was closed is found where the guest has moved it, and
// one that the host has moved or exchanged is not taken for it.
func TestOpenAgain(t *testing.T) {
	g := start(t, Options{})
	few(t, 64)
	fill(t, g.dir, 8, 2)
	node := map[string]uint64{}
	for d := range 8 {
		node[fmt.Sprint(d)] = g.walk(fmt.Sprintf("d%d/sub/f0", d)).NodeId
	}
	forget := func() { // all that is not used is closed
		g.fs.mu.Lock()
		defer g.fs.mu.Unlock()
		now := maxDescriptors
		maxDescriptors = func() int64 { return 0 }
		g.fs.evict()
		maxDescriptors = now
		if n := g.fs.open.Len(); n != 0 {
			t.Fatalf("%d nodes are open", n)
		}
	}
	stat := func(name string) fuse.Status {
		var attr fuse.AttrOut
		return g.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(node[name])}, &attr)
	}
	rename := func(fromDir, from, toDir, to string, flags uint32) {
		t.Helper()
		in := &fuse.RenameIn{InHeader: head(g.walk(fromDir).NodeId), Newdir: g.walk(toDir).NodeId, Flags: flags}
		if s := g.fs.Rename(nil, in, from, to); s != fuse.OK {
			t.Fatalf("%s/%s to %s/%s: %v", fromDir, from, toDir, to, s)
		}
	}
	rename("d0", "sub", "d1", "moved", 0) // above a file
	rename("d2/sub", "f0", "d3/sub", "f9", 0)
	rename("d4/sub", "f0", "d5/sub", "f0", unix.RENAME_EXCHANGE)
	forget()
	for name := range node {
		if s := stat(name); s != fuse.OK {
			t.Errorf("%s, of what the guest has moved: %v", name, s)
		}
	}
	path := func(p string) string { return filepath.Join(g.dir, p) }
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("secret"), 0o644)
	for name, change := range map[string]func(){
		"0": func() { os.Rename(path("d1"), path("gone")) },
		"2": func() { os.Remove(path("d3/sub/f9")) },
		"3": func() { // another file of that name
			os.WriteFile(path("d3/sub/new"), nil, 0o644)
			os.Rename(path("d3/sub/new"), path("d3/sub/f0"))
		},
		"6": func() { os.Remove(path("d6/sub/f0")); os.Symlink(secret, path("d6/sub/f0")) },
		"7": func() { // a link above it
			os.Rename(path("d7/sub"), path("d7/real"))
			os.Symlink("real", path("d7/sub"))
		},
	} {
		forget()
		change()
		if s := stat(name); s != fuse.Status(unix.ESTALE) {
			t.Errorf("%s, of what the host has changed: %v", name, s)
		}
		if _, s := g.open(node[name], unix.O_RDONLY); s != fuse.Status(unix.ESTALE) {
			t.Errorf("%s is opened: %v", name, s)
		}
	}
	// By its new name it is known again.
	if e := g.walk("gone/moved/f0"); e.NodeId != node["0"] || stat("0") != fuse.OK {
		t.Errorf("after it was looked up: node %d, want %d; %v", e.NodeId, node["0"], stat("0"))
	}
	// A directory that the guest has forgotten is no way to what is in it.
	dir := g.walk("d4").NodeId
	forget()
	g.fs.Forget(dir, 1<<40)
	if s := stat("5"); s != fuse.Status(unix.ESTALE) {
		t.Errorf("below a directory that is forgotten: %v", s)
	}
}

// TestKnownIsBounded: what a guest makes, removes and does not forget is not without end.
func TestKnownIsBounded(t *testing.T) {
	g := start(t, Options{})
	known.Add(maxKnown)
	defer known.Add(-maxKnown)
	os.WriteFile(filepath.Join(g.dir, "f"), nil, 0o644)
	if _, s := g.lookup(fuse.FUSE_ROOT_ID, "f"); s != fuse.Status(unix.ENFILE) {
		t.Errorf("one too many: %v", s)
	}
}
