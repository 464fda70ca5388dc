package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
)

// extFS reads ext2, ext3 and ext4 (Linux, Documentation/filesystems/ext4). It
// believes nothing that it reads: sizes are bounded, and the trees of extents
// and blocks have at most the depth that the format allows. The journal is not
// replayed.
type extFS struct {
	r              io.ReaderAt
	hole           func(n int) error // told of bytes that a file has and the disk has not
	size           int64
	block          int64 // bytes
	inodeSize      int64
	inodesPerGroup uint32
	inodes         uint32
	descriptors    int64 // where they are
	descriptorSize int64
}

// Offsets in the superblock, which lies at byte 1024, and limits.
const (
	extSuper          = 1024
	extInodes         = 0x00
	extLogBlock       = 0x18
	extInodesPerGroup = 0x28
	extRevision       = 0x4c
	extInodeSize      = 0x58
	extIncompat       = 0x60
	extDescSize       = 0xfe

	// Incompatible features that change what is read here.
	extCompression = 0x1
	extJournalDev  = 0x8
	extMetaBG      = 0x10
	ext64Bit       = 0x80
	extInline      = 0x8000
	extUnknown     = extCompression | extJournalDev | extMetaBG | extInline

	extRoot      = 2 // the root directory's inode
	extMaxLinks  = 40
	extMaxDir    = 16 << 20
	extExtents   = 0x80000 // EXT4_EXTENTS_FL
	extentMagic  = 0xf30a
	extentDepth  = 5
	extentUnborn = 32768 // longer extents are not initialized
)

var errExt = errors.New("damaged")

// errExtFeatures is for file systems that Linux reads, and this package does not.
var errExtFeatures = errors.New("features that are not known")

func openExt(r io.ReaderAt, size int64) (*extFS, error) {
	le := binary.LittleEndian
	var s [1024]byte
	if _, err := r.ReadAt(s[:], extSuper); err != nil {
		return nil, err
	}
	e := &extFS{r: r, hole: func(int) error { return nil }, size: size, inodeSize: 128, descriptorSize: 32,
		inodes: le.Uint32(s[extInodes:]), inodesPerGroup: le.Uint32(s[extInodesPerGroup:])}
	log := le.Uint32(s[extLogBlock:])
	incompat := le.Uint32(s[extIncompat:])
	if le.Uint32(s[extRevision:]) > 0 {
		e.inodeSize = int64(le.Uint16(s[extInodeSize:]))
	}
	if incompat&ext64Bit != 0 {
		e.descriptorSize = int64(le.Uint16(s[extDescSize:]))
	}
	switch {
	case le.Uint16(s[extMagicAt-extSuper:]) != extMagic:
		return nil, errExt
	case incompat&extUnknown != 0:
		return nil, fmt.Errorf("%w: %#x", errExtFeatures, incompat&extUnknown)
	case log > 6 || e.inodeSize < 128 || e.inodesPerGroup == 0 || e.descriptorSize < 32 || e.descriptorSize > 1024:
		return nil, errExt
	}
	e.block = 1024 << log
	e.descriptors = (extSuper/e.block + 1) * e.block // in the block behind the superblock's
	return e, nil
}

// extInode is an inode.
type extInode struct {
	fs    *extFS
	mode  uint16
	size  int64
	flags uint32
	data  [60]byte // i_block
}

func (e *extFS) inode(n uint32) (*extInode, error) {
	le := binary.LittleEndian
	if n == 0 || n > e.inodes {
		return nil, errExt
	}
	group, index := int64((n-1)/e.inodesPerGroup), int64((n-1)%e.inodesPerGroup)
	var d [64]byte
	if _, err := e.r.ReadAt(d[:min(e.descriptorSize, 64)], e.descriptors+group*e.descriptorSize); err != nil {
		return nil, errExt
	}
	table := int64(le.Uint32(d[8:])) | int64(le.Uint32(d[0x28:]))<<32
	if table <= 0 || table > e.size/e.block {
		return nil, errExt
	}
	var b [128]byte
	if _, err := e.r.ReadAt(b[:], table*e.block+index*e.inodeSize); err != nil {
		return nil, errExt
	}
	i := &extInode{fs: e, mode: le.Uint16(b[:]), flags: le.Uint32(b[32:])}
	i.size = int64(le.Uint32(b[4:])) | int64(le.Uint32(b[108:]))<<32
	if i.size < 0 {
		return nil, errExt
	}
	copy(i.data[:], b[40:])
	return i, nil
}

func (i *extInode) fileMode() fs.FileMode {
	m := fs.FileMode(i.mode & 0o777)
	switch i.mode >> 12 {
	case 4:
		m |= fs.ModeDir
	case 8:
	case 10:
		m |= fs.ModeSymlink
	default:
		m |= fs.ModeIrregular
	}
	return m
}

// find returns where the file's blocks from the given one on are, at most n of
// them in a row; 0 is a hole.
func (i *extInode) find(block uint32, n int64) (at, blocks int64, err error) {
	if i.flags&extExtents != 0 {
		return i.findExtent(i.data[:], block, n, extentDepth)
	}
	at, err = i.findMapped(block)
	return at, 1, err
}

// findExtent looks in a node of the extent tree.
func (i *extInode) findExtent(node []byte, block uint32, n int64, depth int) (at, blocks int64, err error) {
	le := binary.LittleEndian
	entries := int(le.Uint16(node[2:]))
	if le.Uint16(node) != extentMagic || 12+12*entries > len(node) || depth < 0 {
		return 0, 0, errExt
	}
	leaf := le.Uint16(node[6:]) == 0
	n = min(n, int64(^block)+1)
	// The entries are in order: the last that begins at or before the block.
	var found []byte
	for k := range entries {
		e := node[12+12*k : 24+12*k]
		if first := le.Uint32(e); first > block {
			n = min(n, int64(first-block))
			break
		}
		found = e
	}
	if found == nil {
		return 0, n, nil
	}
	if !leaf {
		next := make([]byte, i.fs.block)
		child := int64(le.Uint32(found[4:])) | int64(le.Uint16(found[8:]))<<32
		if _, err := i.fs.r.ReadAt(next, child*i.fs.block); err != nil {
			return 0, 0, errExt
		}
		return i.findExtent(next, block, n, depth-1)
	}
	length, start := int64(le.Uint16(found[4:])), int64(le.Uint32(found[8:]))|int64(le.Uint16(found[6:]))<<32
	unborn := length > extentUnborn
	if unborn {
		length -= extentUnborn
	}
	in := int64(block - le.Uint32(found))
	switch {
	case in >= length:
		return 0, n, nil
	case unborn:
		return 0, min(n, length-in), nil
	}
	return start + in, min(n, length-in), nil
}

// findMapped follows the direct and indirect blocks of ext2 and ext3.
func (i *extInode) findMapped(block uint32) (int64, error) {
	le := binary.LittleEndian
	const direct = 12
	if block < direct {
		return int64(le.Uint32(i.data[4*block:])), nil
	}
	rest, per, span := int64(block-direct), i.fs.block/4, int64(1)
	for level := range int64(3) {
		span *= per
		if rest >= span {
			rest -= span
			continue
		}
		at := int64(le.Uint32(i.data[4*(direct+level):]))
		for ; at != 0 && span > 1; span /= per {
			var b [4]byte
			if _, err := i.fs.r.ReadAt(b[:], at*i.fs.block+rest/(span/per)*4); err != nil {
				return 0, errExt
			}
			at, rest = int64(le.Uint32(b[:])), rest%(span/per)
		}
		return at, nil
	}
	return 0, errExt
}

// ReadAt implements io.ReaderAt.
func (i *extInode) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= i.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), i.size-off)]
	done := 0
	for done < len(p) {
		at := off + int64(done)
		block, in := at/i.fs.block, at%i.fs.block
		if block > 1<<32-1 {
			return done, errExt
		}
		want := (int64(len(p)-done) + in + i.fs.block - 1) / i.fs.block
		where, blocks, err := i.find(uint32(block), want)
		if err != nil {
			return done, err
		}
		if blocks <= 0 {
			return done, errExt
		}
		part := p[done:min(int64(len(p)), int64(done)+blocks*i.fs.block-in)]
		if where == 0 {
			if err := i.fs.hole(len(part)); err != nil {
				return done, err
			}
			clear(part)
		} else if _, err := i.fs.r.ReadAt(part, where*i.fs.block+in); err != nil {
			return done, errExt
		}
		done += len(part)
	}
	return done, nil
}

// list calls each with a directory's entries.
func (i *extInode) list(each func(name string, inode uint32) bool) error {
	le := binary.LittleEndian
	if i.size > extMaxDir {
		return errExt
	}
	b := make([]byte, i.size)
	if n, err := i.ReadAt(b, 0); n < len(b) {
		return err
	}
	for len(b) >= 8 {
		n, length, name := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if length < 8 || length > len(b) || 8+name > length {
			return errExt
		}
		if s := string(b[8 : 8+name]); n != 0 && s != "." && s != ".." && s != "" {
			if !each(s, n) {
				return nil
			}
		}
		b = b[length:]
	}
	return nil
}

// walk follows a path from the root; links is how many symbolic links may
// still be followed.
func (e *extFS) walk(name string, links int) (*extInode, error) {
	at, err := e.inode(extRoot)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for k, part := range parts {
		if part == "" || part == "." {
			continue
		}
		if !at.fileMode().IsDir() {
			return nil, fs.ErrNotExist
		}
		next := uint32(0)
		if err := at.list(func(s string, n uint32) bool {
			if s == part {
				next = n
			}
			return next == 0
		}); err != nil {
			return nil, err
		}
		if next == 0 {
			return nil, fs.ErrNotExist
		}
		if at, err = e.inode(next); err != nil {
			return nil, err
		}
		if at.fileMode()&fs.ModeSymlink != 0 {
			if links == 0 || at.size > 4096 {
				return nil, errExt
			}
			target, err := at.target()
			if err != nil {
				return nil, err
			}
			if !path.IsAbs(target) {
				target = path.Join(path.Join(parts[:k]...), target)
			}
			return e.walk(path.Join(clean(target), path.Join(parts[k+1:]...)), links-1)
		}
	}
	return at, nil
}

// target reads a symbolic link: a short one is in the inode.
func (i *extInode) target() (string, error) {
	if i.size < int64(len(i.data)) && i.flags&extExtents == 0 {
		return string(i.data[:i.size]), nil
	}
	b := make([]byte, i.size)
	_, err := i.ReadAt(b, 0)
	return string(b), err
}

// Open implements fs.FS.
func (e *extFS) Open(name string) (fs.File, error) {
	i, err := e.walk(name, extMaxLinks)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := extFile{i, path.Base(name), io.NewSectionReader(i, 0, i.size)}
	if i.fileMode().IsDir() {
		return &extDir{extFile: f}, nil
	}
	return &f, nil
}

// extFile is an open file, and what fs says of it.
type extFile struct {
	*extInode
	name string
	*io.SectionReader
}

// ReadAt implements io.ReaderAt.
func (f *extFile) ReadAt(p []byte, off int64) (int, error) { return f.SectionReader.ReadAt(p, off) }

// Size implements fs.FileInfo.
func (f *extFile) Size() int64 { return f.size }

// Stat implements fs.File.
func (f *extFile) Stat() (fs.FileInfo, error) { return f, nil }

// Close implements fs.File.
func (f *extFile) Close() error { return nil }

// Name implements fs.FileInfo.
func (f *extFile) Name() string { return f.name }

// Mode implements fs.FileInfo.
func (f *extFile) Mode() fs.FileMode { return f.fileMode() }

// ModTime implements fs.FileInfo: nobody asks here.
func (f *extFile) ModTime() time.Time { return time.Time{} }

// IsDir implements fs.FileInfo.
func (f *extFile) IsDir() bool { return f.Mode().IsDir() }

// Sys implements fs.FileInfo.
func (f *extFile) Sys() any { return nil }

// extDir is an open directory.
type extDir struct {
	extFile
	read bool
}

// ReadDir implements fs.ReadDirFile. It returns all at once.
func (d *extDir) ReadDir(int) (out []fs.DirEntry, err error) {
	if d.read {
		return nil, nil
	}
	d.read = true
	err = d.list(func(name string, n uint32) bool {
		if i, err := d.extInode.fs.inode(n); err == nil {
			out = append(out, fs.FileInfoToDirEntry(&extFile{i, name, nil}))
		}
		return true
	})
	return out, err
}
