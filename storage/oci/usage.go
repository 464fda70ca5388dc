package oci

import (
	"os"
	"path/filepath"
	"syscall"
)

// statBlock is the unit of st_blocks in bytes, whatever the file system's is.
const statBlock = 512

// diskUse is what the files below a path take on the disk, in bytes.
func diskUse(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !d.IsDir() {
			n += st.Blocks * statBlock
		}
		return nil
	})
	return n, err
}
