// Package disk finds out what a disk would boot: it reads the partition table
// and the file systems, and from them the entries of GRUB, of the Boot Loader
// Specification, of extlinux, or just the kernels that are there. The caller
// loads an entry's kernel and initial RAM disks itself, so no firmware and no
// boot loader runs in the guest.
//
// Disks come from anywhere: what is wrong with one is an error, never a panic,
// and only files of the disk itself are read.
package disk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// fileSystem is one of the disk's, mounted for reading.
type fileSystem struct {
	fs.FS
	kind     string
	uuid     string // of an ext file system, or the volume id of a vfat
	label    string
	part     part
	meter    *meter             // nil where nothing of the disk is read for it
	programs map[string]program // of EFI's, that were read, by their clean paths
	// Of one that somebody else reads: see Foreign.
	volume, subvolume string
	array             Array
}

// Bounds of what is read and kept.
const (
	maxFile    = 1 << 30  // bytes of a kernel with its initial RAM disks
	maxConfig  = 64 << 10 // bytes of a configuration of an entry
	maxNames   = 4096     // of a directory
	maxEntries = 1000
)

// catch makes an error of a panic: what a disk can do here it does to itself alone.
func catch(what string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s: damaged: %v", what, p)
	}
}

// maxReasons is of how many partitions an error tells.
const maxReasons = 4

// fileSystems mounts what can be of a disk's partitions.
func fileSystems(r io.ReaderAt, parts []part) ([]*fileSystem, error) {
	var out []*fileSystem
	var kinds []string
	m := &meter{r: r, left: maxSearch}
	for _, p := range parts {
		if p.member {
			kinds = append(kinds, p.String()+": a member of an array (md), of which nothing can be read: are all of its disks there?")
			continue
		}
		f, err := open(m, p)
		if err != nil {
			kinds = append(kinds, fmt.Sprintf("%v: %v", p, err))
			continue
		}
		out = append(out, f)
	}
	if n := len(kinds) - maxReasons; n > 1 {
		kinds = append(kinds[:maxReasons], fmt.Sprintf("and so on with %d others", n))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no file system that can be read (ext2 to ext4, vfat): %s", strings.Join(kinds, "; "))
	}
	return out, nil
}

// The marks of file systems, and where they are.
const (
	extMagicAt = 1024 + 0x38
	extUUIDAt  = 1024 + 0x68
	extMagic   = 0xef53
	headSize   = 4096
)

func open(m *meter, p part) (f *fileSystem, err error) {
	defer catch("file system", &err)
	section := io.NewSectionReader(m, p.start, p.size)
	var head [headSize]byte
	if n, err := section.ReadAt(head[:], 0); n < headSize {
		return nil, fmt.Errorf("too small: %w", err)
	}
	f = &fileSystem{part: p, meter: m}
	switch {
	case binary.LittleEndian.Uint16(head[extMagicAt:]) == extMagic:
		f.kind = "ext4"
		u := head[extUUIDAt:]
		f.uuid = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
		var ext *extFS
		if ext, err = openExt(section, p.size); err == nil {
			ext.hole = m.spend
			f.FS = ext
		}
	case isFAT(head[:]):
		f.kind = "vfat"
		var fat *fatFS
		if fat, err = openFAT(section, head[:]); err == nil {
			f.FS, f.uuid = fat, fat.uuid
		}
	default:
		return nil, errors.New(cmp.Or(marked(closedMarks, m, p), marked(foreignMarks, m, p), "not ext or vfat"))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.kind, err)
	}
	f.label = label(f.kind, head[:])
	return f, nil
}

// clean makes a path of a boot configuration one of fs.FS: it cannot leave
// the file system.
func clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}

// read reads a whole file of at most limit bytes.
func (f *fileSystem) read(name string, limit int64) (b []byte, err error) {
	defer catch(name, &err)
	file, err := f.Open(clean(name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err == nil && st.Size() <= limit {
		b, err = io.ReadAll(io.LimitReader(file, limit+1))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case st.Size() > limit, int64(len(b)) > limit:
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return b, nil
}

// list returns the names in a directory, the first maxNames; none if it cannot be read.
func (f *fileSystem) list(dir string) (names []string) {
	var err error
	defer catch(dir, &err)
	entries, err := fs.ReadDir(f.FS, clean(dir))
	if err != nil {
		return nil
	}
	for _, e := range entries[:min(len(entries), maxNames)] {
		names = append(names, e.Name())
	}
	return names
}
