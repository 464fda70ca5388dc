// Package room bounds what somebody else, such as a guest, has written to a file system of this
// host: to what is free there, but for a rest that everybody needs.
package room

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What is left free: reserve bytes, or of a small file system that part.
const (
	reserve     = 64 << 20
	reservePart = 16
)

// Of is how much may be written to the file system of an open file or directory, in bytes.
func Of(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return max(0, int64(st.Bavail)*st.Bsize-min(reserve, int64(st.Blocks)*st.Bsize/reservePart)), nil
}

// For returns an error, which is unix.ENOSPC, if so many bytes are more than may be written.
func For(f *os.File, bytes int) error {
	left, err := Of(f)
	if err == nil && left < int64(bytes) {
		err = fmt.Errorf("what is free is left so: %w", unix.ENOSPC)
	}
	return err
}

// Writer writes to a regular file as long as there is room.
type Writer struct{ File *os.File }

// Write implements io.Writer. The error may be unix.ENOSPC.
func (w Writer) Write(p []byte) (int, error) {
	if err := For(w.File, len(p)); err != nil {
		return 0, err
	}
	return w.File.Write(p)
}
