package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// shareChecks look at a directory that the host shares: share=PATH.
var shareChecks = []check{
	{"share-names", shareNames},
	{"share-open", shareOpen},
	{"share-attributes", shareAttributes},
	{"share-sparse", shareSparse},
	{"share-mmap", shareMmap},
	{"share-locks", shareLocks},
	{"share-directories", shareDirectories},
	{"share-random", shareRandom},
}

// inShare makes a directory of its own for a check.
func inShare(want map[string]string, name string) (string, error) {
	dir := filepath.Join(want["share"], name)
	return dir, os.Mkdir(dir, 0o755)
}

// wantError reports an error that is not the one that is to be.
func wantError(what string, err error, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("%s: %v, want %v", what, err, want)
	}
	return nil
}

func shareNames(want map[string]string) error {
	dir, err := inShare(want, "names")
	if err != nil {
		return err
	}
	a, b, sub := dir+"/a", dir+"/b", dir+"/sub"
	steps := []func() error{
		func() error { return os.WriteFile(a, []byte("one"), 0o640) },
		func() error { return wantError("mkdir over a file", os.Mkdir(a, 0o755), fs.ErrExist) },
		func() error { return os.Link(a, b) },
		func() error { return wantError("link over a file", os.Link(a, b), fs.ErrExist) },
		func() error { return os.Symlink("a", dir+"/link") },
		func() error { return os.Symlink("/nowhere", dir+"/dangling") },
		func() error { return os.Mkdir(sub, 0o700) },
		func() error { return os.WriteFile(sub+"/x", nil, 0o600) },
		func() error { return wantError("rmdir of a full directory", unix.Rmdir(sub), unix.ENOTEMPTY) },
		func() error { return wantError("unlink of a directory", unix.Unlink(sub), unix.EISDIR) },
		func() error { return wantError("rename of a directory over a file", os.Rename(sub, a), unix.ENOTDIR) },
		func() error { return wantError("a directory into itself", os.Rename(sub, sub+"/deeper"), unix.EINVAL) },
		func() error {
			return wantError("a name too long", os.WriteFile(dir+"/"+strings.Repeat("n", 256), nil, 0o600), unix.ENAMETOOLONG)
		},
		func() error {
			return wantError("rename without replacing", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE), unix.EEXIST)
		},
		func() error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, sub, unix.RENAME_EXCHANGE) },
		func() error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, sub, unix.RENAME_EXCHANGE) },
		func() error { return os.Rename(sub+"/x", dir+"/moved") },
		func() error { return os.Remove(sub) },
		func() error { return unix.Mkfifo(dir+"/pipe", 0o600) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	st, err := os.Stat(dir + "/link")
	if err != nil || st.Size() != 3 {
		return fmt.Errorf("through the link: %v", err)
	}
	var s unix.Stat_t
	if err := unix.Stat(b, &s); err != nil || s.Nlink != 2 {
		return fmt.Errorf("%d links, %v", s.Nlink, err)
	}
	if _, err := os.Stat(dir + "/dangling"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a dangling link: %v", err)
	}
	return nil
}

// shareOpen: an open file lives on under another name and without one.
func shareOpen(want map[string]string) error {
	dir, err := inShare(want, "open")
	if err != nil {
		return err
	}
	f, err := os.Create(dir + "/a")
	if err != nil {
		return err
	}
	defer f.Close()
	f.WriteString("before ")
	if err := os.Rename(dir+"/a", dir+"/b"); err != nil {
		return err
	}
	f.WriteString("renamed ")
	if b, err := os.ReadFile(dir + "/b"); string(b) != "before renamed " {
		return fmt.Errorf("after the rename: %q, %v", b, err)
	}
	if err := os.Remove(dir + "/b"); err != nil {
		return err
	}
	f.WriteString("removed")
	b := make([]byte, 100)
	if n, _ := f.ReadAt(b, 0); string(b[:n]) != "before renamed removed" {
		return fmt.Errorf("after the removal: %q", b[:n])
	}
	a, err := os.OpenFile(dir+"/append", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer a.Close()
	for _, s := range []string{"1", "2", "3"} {
		a.WriteString(s)
	}
	if b, _ := os.ReadFile(dir + "/append"); string(b) != "123" {
		return fmt.Errorf("appended %q", b)
	}
	_, err = os.OpenFile(dir+"/append", os.O_CREATE|os.O_EXCL, 0o600)
	return wantError("O_EXCL", err, fs.ErrExist)
}

func shareAttributes(want map[string]string) error {
	dir, err := inShare(want, "attributes")
	if err != nil {
		return err
	}
	path := dir + "/f"
	old := unix.Umask(0o027)
	err = os.WriteFile(path, []byte("x"), 0o666)
	unix.Umask(old)
	if err != nil {
		return err
	}
	mode := func() fs.FileMode {
		st, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return st.Mode()
	}
	if m := mode(); m != 0o640 {
		return fmt.Errorf("a new file's mode is %v", m)
	}
	if err := os.Chmod(path, 0o751|fs.ModeSetuid); err != nil || mode() != 0o751|fs.ModeSetuid {
		return fmt.Errorf("mode %v, %v", mode(), err)
	}
	ts := []unix.Timespec{{Sec: 1000000000, Nsec: 1}, {Sec: 1234567890, Nsec: 987654321}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mtim != ts[1] {
		return fmt.Errorf("times %v, %v", st.Mtim, err)
	}
	if want["root"] == "1" { // the host's vmm can give files away
		if err := os.Chown(path, 12345, 54321); err != nil {
			return err
		}
		if err := unix.Stat(path, &st); err != nil || st.Uid != 12345 || st.Gid != 54321 {
			return fmt.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
		}
	}
	switch err := unix.Setxattr(path, "user.test", []byte("value"), 0); {
	case errors.Is(err, unix.EOPNOTSUPP): // nor can the host's file system
	case err != nil:
		return fmt.Errorf("setxattr: %w", err)
	default:
		b := make([]byte, 100)
		n, err := unix.Getxattr(path, "user.test", b)
		if err != nil || string(b[:n]) != "value" {
			return fmt.Errorf("getxattr: %q, %v", b[:max(n, 0)], err)
		}
		if n, err = unix.Listxattr(path, b); err != nil || !bytes.Contains(b[:n], []byte("user.test\x00")) {
			return fmt.Errorf("listxattr: %q, %v", b[:max(n, 0)], err)
		}
		if err := unix.Removexattr(path, "user.test"); err != nil {
			return fmt.Errorf("removexattr: %w", err)
		}
		_, err = unix.Getxattr(path, "user.test", b)
		return wantError("a removed attribute", err, unix.ENODATA)
	}
	return nil
}

func shareSparse(want map[string]string) error {
	dir, err := inShare(want, "sparse")
	if err != nil {
		return err
	}
	f, err := os.Create(dir + "/f")
	if err != nil {
		return err
	}
	defer f.Close()
	const far = 1 << 30
	if _, err := f.WriteAt([]byte("end"), far); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/f", &st); err != nil || st.Size != far+3 || st.Blocks*512 > 1<<20 {
		return fmt.Errorf("size %d in %d blocks, %v", st.Size, st.Blocks, err)
	}
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || off == 0 || off > far {
		return fmt.Errorf("data begins at %d, %v", off, err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<20); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("fallocate: %w", err)
	}
	if err := f.Truncate(5); err != nil {
		return err
	}
	b, err := os.ReadFile(dir + "/f")
	if string(b) != "\x00\x00\x00\x00\x00" {
		return fmt.Errorf("after truncate: %q, %v", b, err)
	}
	return nil
}

func shareMmap(want map[string]string) error {
	dir, err := inShare(want, "mmap")
	if err != nil {
		return err
	}
	f, err := os.Create(dir + "/f")
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 256 << 10
	if err := f.Truncate(size); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := range m {
		m[i] = byte(i * 7)
	}
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	b, err := os.ReadFile(dir + "/f")
	if !bytes.Equal(b, m) {
		return fmt.Errorf("what was written by memory is not what is read, %v", err)
	}
	if _, err := f.WriteAt([]byte("by write"), 100); err != nil {
		return err
	}
	if string(m[100:108]) != "by write" {
		return errors.New("what was written is not in memory")
	}
	return unix.Munmap(m)
}

// shareLocks has a child try what the parent has locked.
func shareLocks(want map[string]string) error {
	if path := want["lock"]; path != "" { // the child
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
		if err := wantError("a lock that another has", unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l), unix.EAGAIN); err != nil {
			return err
		}
		l = unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 10}
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l); err != nil {
			return fmt.Errorf("beside it: %w", err)
		}
		return wantError("flock", unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EAGAIN)
	}
	dir, err := inShare(want, "locks")
	if err != nil {
		return err
	}
	f, err := os.Create(dir + "/f")
	if err != nil {
		return err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &l); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("flock: %w", err)
	}
	out, err := exec.Command("/proc/self/exe", "share="+want["share"], "lock="+dir+"/f", "only=share-locks").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CHECK share-locks ok") {
		return fmt.Errorf("the child: %s, %v", out, err)
	}
	return nil
}

func shareDirectories(want map[string]string) error {
	dir, err := inShare(want, "directories")
	if err != nil {
		return err
	}
	var names []string
	for i := range 500 {
		name := fmt.Sprintf("entry-%03d-%s", i, strings.Repeat("x", i%50))
		names = append(names, name)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	sort.Strings(names)
	if strings.Join(got, " ") != strings.Join(names, " ") {
		return fmt.Errorf("%d entries of %d", len(got), len(names))
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_, err = os.Stat(dir)
	return wantError("a removed directory", err, fs.ErrNotExist)
}

// shareRandom does to a file what fsx does: anything in any order, and compares
// with memory after each step.
func shareRandom(want map[string]string) error {
	dir, err := inShare(want, "random")
	if err != nil {
		return err
	}
	f, err := os.Create(dir + "/f")
	if err != nil {
		return err
	}
	defer f.Close()
	const most = 256 << 10
	rng := rand.New(rand.NewPCG(1, 2))
	model := make([]byte, 0, most)
	for step := range 600 {
		off, n := rng.IntN(most), rng.IntN(32<<10)
		switch rng.IntN(6) {
		case 0, 1: // write
			n = min(n, most-off)
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			if _, err := f.WriteAt(b, int64(off)); err != nil {
				return err
			}
			if n > 0 {
				model = model[:max(len(model), off+n)]
				copy(model[off:], b)
			}
		case 2: // truncate
			if err := f.Truncate(int64(off)); err != nil {
				return err
			}
			clear(model[min(off, len(model)):cap(model)])
			model = model[:off]
		case 3: // write by memory
			if n = min(n, len(model)); n == 0 {
				continue
			}
			m, err := unix.Mmap(int(f.Fd()), 0, len(model), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			at := rng.IntN(len(model) - n + 1)
			for i := range n {
				m[at+i] = byte(i + step)
			}
			copy(model[at:at+n], m[at:])
			if err := unix.Munmap(m); err != nil {
				return err
			}
		case 4: // from another opening
			if rng.IntN(2) == 0 {
				f.Sync()
			}
			g, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			f.Close()
			f = g
		}
		off = min(off, len(model))
		n = min(n, len(model)-off)
		b := make([]byte, n)
		if k, err := f.ReadAt(b, int64(off)); k != n || !bytes.Equal(b, model[off:off+n]) {
			return fmt.Errorf("step %d: %d bytes at %d are not what they should be, %v", step, n, off, err)
		}
	}
	st, err := f.Stat()
	if err != nil || st.Size() != int64(len(model)) {
		return fmt.Errorf("size %d, want %d, %v", st.Size(), len(model), err)
	}
	return nil
}
