package share

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// guest calls a file system as a guest's kernel does.
type guest struct {
	t   *testing.T
	fs  *FS
	dir string
}

func start(t *testing.T, o Options) *guest {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	t.Cleanup(func() {
		f.Close()
		if n := openFDs(t); n != before-1 {
			t.Errorf("%d descriptors are left", n-before+1)
		}
	})
	return &guest{t, f, dir}
}

func openFDs(t *testing.T) int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func head(node uint64) fuse.InHeader { return fuse.InHeader{NodeId: node} }

func (g *guest) lookup(dir uint64, name string) (fuse.EntryOut, fuse.Status) {
	var out fuse.EntryOut
	h := head(dir)
	s := g.fs.Lookup(nil, &h, name, &out)
	return out, s
}

// walk looks a path up, a name at a time.
func (g *guest) walk(path string) fuse.EntryOut {
	g.t.Helper()
	out := fuse.EntryOut{NodeId: fuse.FUSE_ROOT_ID}
	for _, name := range strings.Split(path, "/") {
		var s fuse.Status
		if out, s = g.lookup(out.NodeId, name); s != fuse.OK {
			g.t.Fatalf("%s: %v", path, s)
		}
	}
	return out
}

func (g *guest) open(node uint64, flags uint32) (uint64, fuse.Status) {
	var out fuse.OpenOut
	s := g.fs.Open(nil, &fuse.OpenIn{InHeader: head(node), Flags: flags}, &out)
	return out.Fh, s
}

func (g *guest) read(fh uint64, n int) string {
	g.t.Helper()
	r, s := g.fs.Read(nil, &fuse.ReadIn{Fh: fh, Size: uint32(n)}, nil)
	if s != fuse.OK {
		g.t.Fatal(s)
	}
	defer r.Done()
	b, s := r.Bytes(make([]byte, n))
	if s != fuse.OK {
		g.t.Fatal(s)
	}
	return string(b)
}

func (g *guest) create(dir uint64, name string, mode uint32, h fuse.InHeader) (fuse.CreateOut, fuse.Status) {
	h.NodeId = dir
	var out fuse.CreateOut
	s := g.fs.Create(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_RDWR, Mode: mode}, name, &out)
	return out, s
}

func TestFiles(t *testing.T) {
	g := start(t, Options{})
	f, s := g.create(fuse.FUSE_ROOT_ID, "file", unix.S_IFREG|0o666, fuse.InHeader{})
	if s != fuse.OK || f.Mode != unix.S_IFREG|0o666 {
		t.Fatalf("%v, mode %o", s, f.Mode)
	}
	if n, s := g.fs.Writev(nil, &fuse.WriteIn{Fh: f.Fh, Offset: 3}, [][]byte{[]byte("one "), []byte("two")}); n != 7 || s != fuse.OK {
		t.Errorf("wrote %d, %v", n, s)
	}
	if b, _ := os.ReadFile(filepath.Join(g.dir, "file")); string(b) != "\x00\x00\x00one two" {
		t.Errorf("the host has %q", b)
	}
	if got := g.read(f.Fh, 100); got != "\x00\x00\x00one two" {
		t.Errorf("the guest has %q", got)
	}
	var seek fuse.LseekOut
	if s := g.fs.Lseek(nil, &fuse.LseekIn{Fh: f.Fh, Offset: 0, Whence: unix.SEEK_HOLE}, &seek); s != fuse.OK {
		t.Error(s)
	}

	// Open files live on without a name, and under another.
	root := head(fuse.FUSE_ROOT_ID)
	if s := g.fs.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "file", "other"); s != fuse.OK {
		t.Error(s)
	}
	if e := g.walk("other"); e.NodeId != f.NodeId {
		t.Error("a renamed file is another one")
	}
	var link fuse.EntryOut
	if s := g.fs.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: f.NodeId}, "hard", &link); s != fuse.OK || link.NodeId != f.NodeId || link.Nlink != 2 {
		t.Errorf("%v, %+v", s, link)
	}
	for _, name := range []string{"other", "hard"} {
		if s := g.fs.Unlink(nil, &root, name); s != fuse.OK {
			t.Error(s)
		}
	}
	if got := g.read(f.Fh, 100); len(got) != 10 {
		t.Errorf("after its removal: %q", got)
	}
	var attr fuse.AttrOut
	if s := g.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(f.NodeId)}, &attr); s != fuse.OK || attr.Nlink != 0 {
		t.Errorf("%v, %+v", s, attr)
	}
	g.fs.Release(nil, &fuse.ReleaseIn{Fh: f.Fh})
	g.fs.Forget(f.NodeId, 3)
	if s := g.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: head(f.NodeId)}, &attr); s != fuse.Status(unix.ESTALE) {
		t.Errorf("a forgotten file: %v", s)
	}
}

func TestAttributes(t *testing.T) {
	g := start(t, Options{})
	os.WriteFile(filepath.Join(g.dir, "f"), []byte("content"), 0o600)
	n := g.walk("f").NodeId
	set := func(in fuse.SetAttrInCommon) fuse.AttrOut {
		t.Helper()
		in.NodeId = n
		var out fuse.AttrOut
		if s := g.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &out); s != fuse.OK {
			t.Fatal(s)
		}
		return out
	}
	if a := set(fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE | fuse.FATTR_SIZE, Mode: 0o4751, Size: 3}); a.Mode&0o7777 != 0o4751 || a.Size != 3 {
		t.Errorf("%+v", a)
	}
	if a := set(fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME, Mtime: 1234567890, Mtimensec: 5}); a.Mtime != 1234567890 || a.Mtimensec != 5 {
		t.Errorf("%+v", a)
	}
	h := head(n)
	if s := g.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h}, "user.color", []byte("blue")); s == fuse.OK {
		buf := make([]byte, 10)
		if k, s := g.fs.GetXAttr(nil, &h, "user.color", buf); s != fuse.OK || string(buf[:k]) != "blue" {
			t.Errorf("%q, %v", buf[:k], s)
		}
		if k, s := g.fs.ListXAttr(nil, &h, nil); s != fuse.OK || k == 0 {
			t.Errorf("list: %d, %v", k, s)
		}
		if s := g.fs.RemoveXAttr(nil, &h, "user.color"); s != fuse.OK {
			t.Error(s)
		}
	} else if s != fuse.Status(unix.EOPNOTSUPP) { // as on an older tmpfs
		t.Error(s)
	}
	if os.Getuid() == 0 {
		f, s := g.create(fuse.FUSE_ROOT_ID, "theirs", unix.S_IFREG|0o6755, fuse.InHeader{Caller: fuse.Caller{Owner: fuse.Owner{Uid: 12, Gid: 34}}})
		if s != fuse.OK || f.Uid != 12 || f.Gid != 34 || f.Mode&0o7777 != 0o6755 {
			t.Errorf("%v, %+v", s, f.Attr)
		}
	}
}

// TestOwner: who is not root sees his own files as those of a user of the guest.
func TestOwner(t *testing.T) {
	g := start(t, Options{GuestUID: 1000, GuestGID: 1001})
	g.fs.uid, g.fs.gid = 500, 501 // as if
	var out fuse.Attr
	g.fs.attr(&unix.Stat_t{Uid: 500, Gid: 501}, &out)
	if out.Uid != 1000 || out.Gid != 1001 {
		t.Errorf("own files are %d:%d's", out.Uid, out.Gid)
	}
	g.fs.attr(&unix.Stat_t{Uid: 7, Gid: 8}, &out)
	if out.Uid != 7 || out.Gid != 8 {
		t.Errorf("others' are %d:%d's", out.Uid, out.Gid)
	}
	if u, gid := g.fs.owner(1000, -1); u != 500 || gid != -1 {
		t.Errorf("the guest's user is %d, %d", u, gid)
	}
}

func TestDirectories(t *testing.T) {
	g := start(t, Options{})
	var want []string
	for i := range 3000 {
		name := "entry-" + strings.Repeat("x", i%40) + "-" + time.Duration(i).String()
		want = append(want, name)
		os.WriteFile(filepath.Join(g.dir, name), nil, 0o644)
	}
	var dir fuse.OpenOut
	if s := g.fs.OpenDir(nil, &fuse.OpenIn{InHeader: head(fuse.FUSE_ROOT_ID)}, &dir); s != fuse.OK {
		t.Fatal(s)
	}
	for _, plus := range []bool{false, true} {
		var got []string
		offset := uint64(0)
		for {
			list := fuse.NewDirEntryList(make([]byte, 4096), offset)
			in := &fuse.ReadIn{InHeader: head(fuse.FUSE_ROOT_ID), Fh: dir.Fh, Offset: offset}
			var entries []fuse.DirEntry
			var err error
			if plus {
				if s := g.fs.ReadDirPlus(nil, in, list); s != fuse.OK {
					t.Fatal(s)
				}
				entries, _, err = fuse.ParseDirLookupEntries(list.Bytes())
			} else {
				if s := g.fs.ReadDir(nil, in, list); s != fuse.OK {
					t.Fatal(s)
				}
				entries, err = fuse.ParseDirEntries(list.Bytes())
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				if offset = e.Off; e.Name != "." && e.Name != ".." {
					got = append(got, e.Name)
				}
			}
		}
		sort.Strings(got)
		sort.Strings(want)
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("plus %v: %d entries, want %d", plus, len(got), len(want))
		}
	}
	g.fs.ReleaseDir(&fuse.ReleaseIn{Fh: dir.Fh})
}

// TestEscape tries every way out of the directory.
func TestEscape(t *testing.T) {
	g := start(t, Options{})
	outside := filepath.Join(filepath.Dir(g.dir), "outside")
	os.WriteFile(outside, []byte("secret"), 0o644)
	os.Mkdir(filepath.Join(g.dir, "sub"), 0o755)
	for _, target := range []string{"../outside", outside, "/", "..", "/proc/self/root"} {
		os.Symlink(target, filepath.Join(g.dir, "sub", "link-"+strings.ReplaceAll(target, "/", "_")))
	}
	root := head(fuse.FUSE_ROOT_ID)
	for _, name := range []string{"..", ".", "", "../outside", "sub/../../outside", "/etc", outside, "sub/"} {
		if _, s := g.lookup(fuse.FUSE_ROOT_ID, name); s == fuse.OK {
			t.Errorf("%q is found", name)
		}
		if _, s := g.create(fuse.FUSE_ROOT_ID, name, 0o644, fuse.InHeader{}); s == fuse.OK {
			t.Errorf("%q is created", name)
		}
		var e fuse.EntryOut
		for what, s := range map[string]fuse.Status{
			"mkdir":   g.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: root, Mode: 0o755}, name, &e),
			"mknod":   g.fs.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFREG}, name, &e),
			"symlink": g.fs.Symlink(nil, &root, "x", name, &e),
			"unlink":  g.fs.Unlink(nil, &root, name),
			"rmdir":   g.fs.Rmdir(nil, &root, name),
			"rename":  g.fs.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "sub", name),
			"from":    g.fs.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, name, "x"),
			"link":    g.fs.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: g.walk("sub").NodeId}, name, &e),
		} {
			if s == fuse.OK {
				t.Errorf("%s %q works", what, name)
			}
		}
	}
	// Links are found as links, and nothing is done through them.
	sub := g.walk("sub").NodeId
	links, _ := os.ReadDir(filepath.Join(g.dir, "sub"))
	for _, l := range links {
		e, s := g.lookup(sub, l.Name())
		if s != fuse.OK || e.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%s: %v, mode %o", l.Name(), s, e.Mode)
		}
		if _, s := g.open(e.NodeId, unix.O_RDONLY); s == fuse.OK {
			t.Errorf("%s is opened", l.Name())
		}
		if _, s := g.lookup(e.NodeId, "etc"); s == fuse.OK {
			t.Errorf("a name below %s is found", l.Name())
		}
		if _, s := g.create(sub, l.Name(), 0o644, fuse.InHeader{}); s == fuse.OK {
			t.Errorf("%s is created through the link", l.Name())
		}
		var a fuse.AttrOut
		in := fuse.SetAttrInCommon{InHeader: head(e.NodeId), Valid: fuse.FATTR_SIZE}
		if s := g.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &a); s == fuse.OK {
			t.Errorf("%s is truncated", l.Name())
		}
		in = fuse.SetAttrInCommon{InHeader: head(e.NodeId), Valid: fuse.FATTR_MODE, Mode: 0o777}
		if s := g.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &a); s == fuse.OK {
			t.Errorf("%s has another mode", l.Name())
		}
	}
	// A directory that is swapped for a link on the host stays what it was.
	os.Mkdir(filepath.Join(g.dir, "swap"), 0o755)
	swap := g.walk("swap").NodeId
	os.Rename(filepath.Join(g.dir, "swap"), filepath.Join(g.dir, "gone"))
	os.Symlink("/", filepath.Join(g.dir, "swap"))
	if _, s := g.lookup(swap, "etc"); s == fuse.OK {
		t.Error("a name is found through a link that was swapped in")
	}
	if b, _ := os.ReadFile(outside); string(b) != "secret" {
		t.Errorf("the file outside is %q", b)
	}
	// Devices and pipes are not opened, and devices are not made.
	unix.Mkfifo(filepath.Join(g.dir, "pipe"), 0o644)
	if _, s := g.open(g.walk("pipe").NodeId, unix.O_RDONLY); s != fuse.EACCES {
		t.Errorf("opening a pipe: %v", s)
	}
	var e fuse.EntryOut
	if s := g.fs.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFBLK | 0o666, Rdev: 8 << 8}, "disk", &e); s != fuse.EPERM {
		t.Errorf("making a device: %v", s)
	}
}

func TestReadOnly(t *testing.T) {
	g := start(t, Options{ReadOnly: true, Static: true})
	os.WriteFile(filepath.Join(g.dir, "f"), []byte("content"), 0o666)
	n := g.walk("f").NodeId
	root := head(fuse.FUSE_ROOT_ID)
	var e fuse.EntryOut
	var a fuse.AttrOut
	fh, s := g.open(n, unix.O_RDONLY)
	if s != fuse.OK || g.read(fh, 10) != "content" {
		t.Error(s)
	}
	_, create := g.create(fuse.FUSE_ROOT_ID, "x", 0o644, fuse.InHeader{})
	_, open := g.open(n, unix.O_RDWR)
	_, truncate := g.open(n, unix.O_RDONLY|unix.O_TRUNC)
	_, write := g.fs.Writev(nil, &fuse.WriteIn{Fh: fh}, [][]byte{{1}})
	for what, s := range map[string]fuse.Status{
		"create": create, "open": open, "truncate": truncate, "write": write,
		"mkdir":     g.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: root}, "x", &e),
		"unlink":    g.fs.Unlink(nil, &root, "f"),
		"rename":    g.fs.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: 1}, "f", "g"),
		"setattr":   g.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: head(n), Valid: fuse.FATTR_MODE}}, &a),
		"fallocate": g.fs.Fallocate(nil, &fuse.FallocateIn{Fh: fh, Length: 1}),
		"setxattr":  g.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: head(n)}, "user.x", nil),
		"link":      g.fs.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: n}, "x", &e),
		"symlink":   g.fs.Symlink(nil, &root, "y", "x", &e),
	} {
		if s != fuse.EROFS {
			t.Errorf("%s: %v", what, s)
		}
	}
	if e, s := g.lookup(fuse.FUSE_ROOT_ID, "nothing"); s != fuse.OK || e.NodeId != 0 || e.EntryTimeout() == 0 {
		t.Errorf("what is not there: %v, %+v", s, e)
	}
}

func TestLocks(t *testing.T) {
	g := start(t, Options{})
	os.WriteFile(filepath.Join(g.dir, "f"), bytes.Repeat([]byte{0}, 100), 0o666)
	n := g.walk("f").NodeId
	a, _ := g.open(n, unix.O_RDWR)
	b, _ := g.open(n, unix.O_RDWR)
	lock := func(fh, owner uint64, kind, flags uint32, start, end uint64) fuse.Status {
		return g.fs.SetLk(nil, &fuse.LkIn{Fh: fh, Owner: owner, LkFlags: flags, Lk: fuse.FileLock{Start: start, End: end, Typ: kind}})
	}
	if s := lock(a, 1, unix.F_WRLCK, 0, 0, 9); s != fuse.OK {
		t.Fatal(s)
	}
	if s := lock(b, 2, unix.F_WRLCK, 0, 5, math.MaxInt64); s != fuse.EAGAIN {
		t.Errorf("a lock that another has: %v", s)
	}
	if s := lock(b, 2, unix.F_WRLCK, 0, 10, math.MaxInt64); s != fuse.OK {
		t.Errorf("beside it: %v", s)
	}
	var out fuse.LkOut
	if s := g.fs.GetLk(nil, &fuse.LkIn{Fh: b, Owner: 2, Lk: fuse.FileLock{End: 100, Typ: unix.F_WRLCK}}, &out); s != fuse.OK || out.Lk.Typ != unix.F_WRLCK || out.Lk.End != 9 {
		t.Errorf("%v, %+v", s, out)
	}
	got := make(chan fuse.Status, 1)
	go func() {
		got <- g.fs.SetLkw(nil, &fuse.LkIn{Fh: b, Owner: 2, Lk: fuse.FileLock{End: 9, Typ: unix.F_WRLCK}})
	}()
	time.Sleep(5 * time.Millisecond)
	g.fs.Flush(nil, &fuse.FlushIn{Fh: a, LockOwner: 1})
	if s := <-got; s != fuse.OK {
		t.Errorf("after waiting: %v", s)
	}
	cancel := make(chan struct{})
	go func() {
		got <- g.fs.SetLkw(cancel, &fuse.LkIn{Fh: a, Owner: 1, Lk: fuse.FileLock{End: 9, Typ: unix.F_WRLCK}})
	}()
	close(cancel)
	if s := <-got; s != fuse.EINTR {
		t.Errorf("after giving up: %v", s)
	}
	if s := lock(a, 1, unix.F_WRLCK, fuse.FUSE_LK_FLOCK, 0, math.MaxInt64); s != fuse.OK {
		t.Errorf("flock: %v", s)
	}
	if s := lock(b, 2, unix.F_RDLCK, fuse.FUSE_LK_FLOCK, 0, math.MaxInt64); s != fuse.EAGAIN {
		t.Errorf("flock of another: %v", s)
	}
	if s := lock(a, 1, unix.F_WRLCK, 0, 1<<63, 1<<63); s != fuse.EINVAL {
		t.Errorf("a lock beyond all: %v", s)
	}
}

// TestSystem: the host's kernel is not shared.
func TestSystem(t *testing.T) {
	f, err := New("/", Options{ReadOnly: true, Static: true, System: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := &guest{t, f, "/"}
	for name, found := range map[string]bool{"proc": false, "sys": false, "etc": true, "usr": true} {
		e, s := g.lookup(fuse.FUSE_ROOT_ID, name)
		if s != fuse.OK || (e.NodeId != 0) != found {
			t.Errorf("/%s: %v, node %d", name, s, e.NodeId)
		}
	}
}
