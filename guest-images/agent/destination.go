package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
	"vmm/internal/room"
)

// destination is where the top of an archive comes to be.
type destination struct {
	root *os.Root
	as   string // its name below the root; "." is the root itself
	// through is what is there already and is written to, a file (regular is set), a device
	// or a pipe; "" is nothing.
	through string
	regular bool
}

// refused finds what cannot be, whatever is copied.
func (x *extraction) refused() error {
	if x.to == "" {
		return errors.New("no path to copy to")
	}
	if st, err := os.Stat(x.to); err == nil && st.IsDir() && x.base == "" && !x.content {
		return errors.New("all of the guest is copied to a directory that is not there yet; what is in /. can go to one that is")
	}
	return nil
}

// copied are the types of what is copied.
var copied = string([]byte{tar.TypeDir, tar.TypeReg, tar.TypeSymlink, tar.TypeLink})

// find finds out where a copy comes to by what is there and what the top of the archive is,
// as docker cp does (docs/sandbox.md has the table). Without a top it is a directory.
func (x *extraction) find(top *tar.Header) error {
	if top != nil && !strings.ContainsRune(copied, rune(top.Typeflag)) {
		return fmt.Errorf("%s is a device or a pipe: files, directories and links are copied", x.base)
	}
	isDir := top != nil && top.Typeflag == tar.TypeDir
	st, err := os.Stat(x.to)
	switch {
	case err == nil && st.IsDir():
		if top == nil || isDir && x.content {
			return x.openRoot(x.to, ".")
		}
		return x.openRoot(x.to, x.base)
	case top == nil && err == nil:
		return fmt.Errorf("%s is not a directory: an archive is unpacked in one", x.to)
	case top == nil, err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err == nil && isDir:
		return fmt.Errorf("%s is not a directory: a directory is not copied to it", x.to)
	case err != nil && namesDir(x.to) && !isDir:
		return fmt.Errorf("there is no directory %s", x.to)
	}
	if err == nil && top.Typeflag == tar.TypeReg {
		x.through, x.regular = x.to, st.Mode().IsRegular()
		if throughProcess(x.to) {
			x.regular = false
			return x.openRoot(filepath.Dir(x.to), filepath.Base(x.to))
		}
	}
	// A link at the end leads on, unless a link comes to its place.
	real, links, err := paths.Walk(strings.TrimRight(x.to, "/"), top.Typeflag != tar.TypeSymlink)
	if missing := (*fs.PathError)(nil); errors.As(err, &missing) && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no directory %s", missing.Path)
	}
	if err != nil {
		return err
	}
	if err := x.notByGuest(links); err != nil {
		return err
	}
	if x.through != "" {
		x.through = real
	}
	return x.openRoot(filepath.Dir(real), filepath.Base(real))
}

// throughProcess reports whether a path is a link to what a process has open, such as
// /dev/stdout.
func throughProcess(path string) bool {
	path = filepath.Clean(path)
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&fs.ModeSymlink != 0 && (filepath.Dir(path) == "/dev" || strings.HasPrefix(path, "/proc/"))
}

// notByGuest refuses a way through symbolic links that are in these directories, if the
// guest could have put them there.
func (x *extraction) notByGuest(links []string) error {
	for _, l := range links {
		if in := paths.Inside(l, x.guest); in != "" {
			return &paths.GuestError{Path: x.to, Dir: in}
		}
	}
	return nil
}

// openRoot opens the directory that the top comes to, which somebody may be exchanging: a
// link that comes to be meanwhile is an error. A new directory has its name there.
func (x *extraction) openRoot(dir, as string) error {
	real, links, err := paths.Walk(dir, true)
	if err == nil {
		err = x.notByGuest(links)
	}
	if err != nil {
		return err
	}
	open, err := openDir(real)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: errors.Unwrap(err)}
	}
	defer open.Close()
	if x.fits && (x.through == "" || x.regular) {
		if x.limit, err = room.Of(open); err != nil {
			return err
		}
		x.limit = max(block, x.limit) // for 0 is no limit
	}
	x.as = as
	x.root, err = rootOf(open)
	return err
}

// openDir opens a directory by its path, in which a link that comes to be is an error.
func openDir(real string) (*os.File, error) {
	fd, err := paths.Open(real, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: real, Err: err}
	}
	return os.NewFile(uintptr(fd), real), nil
}

// rootOf is a directory that is open, out of which no path leads.
func rootOf(dir *os.File) (*os.Root, error) {
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
}

// pipePoll is how often a pipe is tried that nobody reads yet.
const pipePoll = 50 * time.Millisecond

// openThrough opens what is there already for writing; a file is emptied.
func (x *extraction) openThrough(path string) (*os.File, error) {
	if throughProcess(path) {
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	}
	flags := unix.O_WRONLY | unix.O_NOCTTY | unix.O_TRUNC
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeNamedPipe != 0 {
		flags |= unix.O_NONBLOCK
	}
	ctx := x.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	for {
		fd, err := paths.Open(path, flags, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.ENXIO) || flags&unix.O_NONBLOCK == 0 {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		select { // until somebody reads it
		case <-time.After(pipePoll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
