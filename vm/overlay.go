package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmm/storage"
)

// Overlay is a new, empty file beside a disk's: it is for what the guest writes once the
// disk's own file belongs to a snapshot.
type Overlay struct {
	Path string   // as the VM is to call it: absolute
	File *os.File // open for reading and writing
	// Direct is the file opened once more, which a disk with storage.None needs.
	Direct *os.File
}

// ErrNoDisk is in the error for a file that no VM writes to.
var ErrNoDisk = errors.New("no VM has it as a disk")

// NewOverlay makes one for the disk in a file, whose path is absolute and without symbolic
// links. Root gives it to the owner of that file. The path may be the word of a VM's process,
// which was broken into perhaps: so it has to be a file that somebody has locked for writing,
// or the error is ErrNoDisk.
func NewOverlay(disk string) (*Overlay, error) {
	f, err := os.OpenFile(disk, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	used, err := storage.InUse(f)
	if err == nil && !used {
		err = &fs.PathError{Op: "overlay", Path: disk, Err: ErrNoDisk}
	}
	if err != nil {
		return nil, err
	}
	o := &Overlay{}
	base := strings.TrimSuffix(disk, filepath.Ext(disk))
	for n := 1; o.File == nil; n++ {
		o.Path = fmt.Sprintf("%s-%d.qcow2", base, n)
		o.File, err = os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil && (!errors.Is(err, os.ErrExist) || n == maxOverlays) {
			return nil, err
		}
	}
	// By its descriptor: the name may be another file's by now.
	if o.Direct, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", o.File.Fd()), os.O_RDWR, 0); err == nil && os.Geteuid() == 0 {
		owner := st.Sys().(*syscall.Stat_t)
		err = o.File.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// maxOverlays bounds how many there may be beside a disk.
const maxOverlays = 10000

// Close closes the files. One that no VM has begun to use is removed, and none can from then
// on.
func (o *Overlay) Close() error {
	st, err := o.File.Stat()
	used := err == nil && st.Size() > 0
	err = errors.Join(err, o.File.Close())
	if o.Direct != nil {
		err = errors.Join(err, o.Direct.Close())
	}
	if used {
		return err
	}
	f, locked := storage.OpenFile(o.Path, false, storage.Writeback)
	if locked != nil { // a VM's, or somebody has removed it
		return err
	}
	if now, bad := os.Lstat(o.Path); bad == nil && os.SameFile(st, now) && now.Size() == 0 {
		err = errors.Join(err, os.Remove(o.Path))
	}
	return errors.Join(err, f.Close())
}
