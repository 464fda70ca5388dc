package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"vmm/internal/xattr"
)

// Upper is what was written to a root that is an overlay.
type Upper struct {
	Dir, Lower string // the overlay's upper directory, and what is below it
	// Own are files and directories that the guest's init has made, from the root on without
	// a slash before: files of the guest's and not of its image's, and empty directories.
	Own []string
	// Xattrs begins the names of the attributes that the overlay keeps: TrustedXattrs, if it is empty, or UserXattrs.
	Xattrs string
}

func (u *Upper) xattrs() string { return cmp.Or(u.Xattrs, TrustedXattrs) }

// errNoUpper is the error where the root is no overlay.
var errNoUpper = errors.New("the guest's root is neither a container image nor a directory for reading: what has changed in it is not known")

// What happened to a file, as docker writes it.
const (
	Added   = 'A'
	Changed = 'C'
	Deleted = 'D'
)

// What an overlay keeps beside its files (Linux, filesystems/overlayfs.rst).
const (
	TrustedXattrs = "trusted.overlay."
	UserXattrs    = "user.overlay." // with its option userxattr

	overlayOpaque   = "opaque"   // "y": nothing of this directory shows that is below
	overlayRedirect = "redirect" // a directory that is elsewhere below
	overlayMetacopy = "metacopy" // a file whose contents are below
)

// change is a file of an upper directory that is not as it is below.
type change struct {
	kind byte
	path string // from the root on
	at   entry  // unless it is deleted
	// opaque is a directory of which nothing shows that is below; hidden is below one.
	opaque, hidden bool
}

// entry is a name in a directory that is open, and what it was when it was looked at.
type entry struct {
	dir  *os.File
	base string
	st   unix.Stat_t
}

// look looks a name up; ok is false if there is nothing of it.
func look(dir *os.File, base string) (e entry, ok bool, err error) {
	e = entry{dir: dir, base: base}
	if dir == nil {
		return e, false, nil
	}
	err = unix.Fstatat(int(dir.Fd()), base, &e.st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return e, false, nil
	}
	return e, err == nil, e.failed(err)
}

func (e *entry) kind() uint32 { return e.st.Mode & unix.S_IFMT }

func (e *entry) isDir() bool { return e.kind() == unix.S_IFDIR }

// path leads to the entry also when it has another name by now.
func (e *entry) path() string { return fmt.Sprintf("/proc/self/fd/%d/%s", e.dir.Fd(), e.base) }

func (e *entry) failed(err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "reading", Path: e.base, Err: err}
}

// openFD opens a file or a directory for reading, and nothing else than that.
func (e *entry) openFD(flags int) (fd int, err error) {
	fd, err = unix.Openat(int(e.dir.Fd()), e.base, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return fd, e.failed(err)
}

// open is openFD with a file that can do more, which takes more system calls.
func (e *entry) open(flags int) (*os.File, error) {
	fd, err := e.openFD(flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.base), nil
}

// xattrs returns the extended attributes.
func (e *entry) xattrs() (map[string]string, error) {
	out, err := xattr.Of(e.path())
	if err != nil {
		err = e.failed(errors.Unwrap(err))
	}
	return out, err
}

// xattrsOf returns the extended attributes of the entry, which is open: that is less work for
// the kernel than to look up its path.
func (e *entry) xattrsOf(fd int) (map[string]string, error) {
	out, err := xattr.OfFile(fd)
	return out, e.failed(err)
}

// names are what is in a directory, in order.
func namesIn(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, 0); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// layer is a directory of the upper directory.
type layer struct {
	change
	above        *layer
	upper, lower *os.File // lower is nil where there is no directory below
	cut          bool     // nothing shows of what is below
	told         bool
}

// changes calls each for what has changed: a directory comes before what is in it, and also if
// nothing but that has changed.
func (u *Upper) changes(each func(*change) error) error {
	if u == nil {
		return errNoUpper
	}
	upper, err := os.Open(u.Dir)
	if err != nil {
		return err
	}
	defer upper.Close()
	lower, err := os.Open(u.Lower)
	if err != nil {
		return err
	}
	defer lower.Close()
	return u.walk(&layer{upper: upper, lower: lower, told: true}, each)
}

// tell tells of a change, and of the directories above it.
func (l *layer) tell(c *change, each func(*change) error) error {
	if !l.told {
		l.told = true
		if err := l.above.tell(&l.change, each); err != nil {
			return err
		}
	}
	return each(c)
}

func (u *Upper) walk(l *layer, each func(*change) error) error {
	names, err := namesIn(l.upper)
	if err != nil {
		return err
	}
	if l.cut && l.lower != nil {
		below, err := namesIn(l.lower)
		if err != nil {
			return err
		}
		names = append(names, below...)
		slices.Sort(names)
		names = slices.Compact(names)
	}
	for _, base := range names {
		if err := u.name(l, base, each); err != nil {
			return err
		}
	}
	return nil
}

// name looks at one name of a directory.
func (u *Upper) name(l *layer, base string, each func(*change) error) error {
	file := path.Join(l.path, base)
	above, there, err := look(l.upper, base)
	if err != nil {
		return err
	}
	below, was, err := look(l.lower, base)
	if err != nil {
		return err
	}
	own := slices.Contains(u.Own, file)
	c := change{kind: Added, path: file, at: above, hidden: l.cut}
	if was {
		c.kind = Changed
	}
	switch {
	case own && !above.isDir():
		return nil
	case !there || above.kind() == unix.S_IFCHR && above.st.Rdev == 0: // a whiteout
		if !was {
			return nil
		}
		c.kind = Deleted
		return l.tell(&c, each)
	}
	attributes, err := above.xattrs()
	if err != nil {
		return err
	}
	if attributes[u.xattrs()+overlayRedirect] != "" || hasKey(attributes, u.xattrs()+overlayMetacopy) {
		return fmt.Errorf("/%s was renamed or changed in a way that this guest's overlay keeps apart: copy it to another name", file)
	}
	if !above.isDir() {
		return l.tell(&c, each)
	}
	next := &layer{above: l}
	if next.upper, err = above.open(unix.O_DIRECTORY); err != nil {
		return err
	}
	defer next.upper.Close()
	merged := was && below.isDir()
	if merged {
		if next.lower, err = below.open(unix.O_DIRECTORY); err != nil {
			return err
		}
		defer next.lower.Close()
	}
	c.opaque = merged && !l.cut && attributes[u.xattrs()+overlayOpaque] == "y"
	next.change, next.cut = c, l.cut || c.opaque
	same := own
	if merged && !next.cut {
		if same, err = u.sameDirectory(&above, &below, attributes); err != nil {
			return err
		}
	}
	if !same {
		next.told = true
		if err := l.tell(&next.change, each); err != nil {
			return err
		}
	}
	return u.walk(next, each)
}

func hasKey(m map[string]string, key string) bool { _, ok := m[key]; return ok }

// sameDirectory reports whether a directory is in the upper directory only because of what is
// in it. As with docker its time does not count.
func (u *Upper) sameDirectory(above, below *entry, attributes map[string]string) (bool, error) {
	before, err := below.xattrs()
	if err != nil {
		return false, err
	}
	a, b := &above.st, &below.st
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && maps.Equal(without(attributes, u.xattrs()), without(before, u.xattrs())), nil
}
