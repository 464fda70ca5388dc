package vm

import (
	"errors"
	"fmt"
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

// NewOverlay makes one for the disk in a file, whose path is absolute and without symbolic
// links. Root gives it to the owner of that file.
func NewOverlay(disk string) (_ *Overlay, err error) {
	st, err := os.Stat(disk)
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
	if o.Direct, err = os.OpenFile(o.Path, os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil && os.Geteuid() == 0 {
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
	if f.Size() == 0 {
		err = errors.Join(err, os.Remove(o.Path))
	}
	return errors.Join(err, f.Close())
}
