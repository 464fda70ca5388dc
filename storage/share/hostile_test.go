package share

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestCreateOpensFilesOnly: what is there already and is no file is not opened, not
// even for a moment: that lets a program of the host's go on that waits at a FIFO.
func TestCreateOpensFilesOnly(t *testing.T) {
	g := start(t, Options{})
	path := filepath.Join(g.dir, "fifo")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC} {
		var out fuse.CreateOut
		if s := g.fs.Create(nil, &fuse.CreateIn{InHeader: head(fuse.FUSE_ROOT_ID), Flags: flags, Mode: 0o644}, "fifo", &out); s != fuse.EACCES {
			t.Errorf("flags %#x: %v, want %v", flags, s, fuse.EACCES)
		}
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); err != unix.EAGAIN {
		t.Errorf("the FIFO was opened: %d bytes of events, %v", n, err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out fuse.CreateOut
	if s := g.fs.Create(nil, &fuse.CreateIn{InHeader: head(fuse.FUSE_ROOT_ID), Flags: unix.O_RDONLY, Mode: 0o644}, "file", &out); s != fuse.OK {
		t.Fatalf("a file that is there: %v", s)
	}
	if got := g.read(out.Fh, 100); got != "content" {
		t.Errorf("the guest reads %q", got)
	}
}

// TestReadOnlyLocksNothing: a guest that may not change a directory cannot hold up the
// host's programs by locks either, nor by descriptors that are open for writing.
func TestReadOnlyLocksNothing(t *testing.T) {
	g := start(t, Options{ReadOnly: true})
	path := filepath.Join(g.dir, "file")
	if err := os.WriteFile(path, []byte("content"), 0o755); err != nil {
		t.Fatal(err)
	}
	fh, s := g.open(g.walk("file").NodeId, unix.O_RDONLY)
	if s != fuse.OK {
		t.Fatal(s)
	}
	if g.fs.Locks() {
		t.Error("the guest is told that it may lock")
	}
	before := openFDs(t)
	for _, kind := range []uint32{unix.F_RDLCK, unix.F_WRLCK} {
		for _, flags := range []uint32{0, fuse.FUSE_LK_FLOCK} {
			in := &fuse.LkIn{Fh: fh, Owner: 1, Lk: fuse.FileLock{Typ: kind, End: 1 << 20}, LkFlags: flags}
			for name, s := range map[string]fuse.Status{
				"GetLk": g.fs.GetLk(nil, in, &fuse.LkOut{}), "SetLk": g.fs.SetLk(nil, in), "SetLkw": g.fs.SetLkw(nil, in),
			} {
				if s != fuse.ENOSYS {
					t.Errorf("%s: %v, want %v", name, s, fuse.ENOSYS)
				}
			}
		}
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors more", n-before)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the host cannot lock its file: %v", err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Errorf("the host cannot lock its file: %v", err)
	}
}

// TestInterrupt: the device may interrupt and continue in any order.
func TestInterrupt(t *testing.T) {
	g := start(t, Options{})
	for _, step := range []func(){g.fs.Interrupt, g.fs.Interrupt, g.fs.Continue, g.fs.Continue, g.fs.Interrupt} {
		step()
	}
	select {
	case <-g.fs.waiting():
	default:
		t.Error("what waits for a lock is not interrupted")
	}
}
