package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"path"
	"strings"
	"time"
	"unicode/utf16"
)

// fatFS reads FAT12, FAT16 and FAT32 (Microsoft, FAT: General Overview of On-Disk
// Format, 1.03) with long names. It believes nothing that it reads: a chain of
// clusters is at most as long as the volume, and a directory as large as the format
// allows.
type fatFS struct {
	r        io.ReaderAt
	width    int   // of an entry of the table in bits: 12, 16 or 32
	table    int64 // where the first table is
	root     int64 // where the root directory of FAT12 and FAT16 is
	rootSize int64 // its bytes, 0 for FAT32
	first    uint32
	data     int64  // where cluster 2 is
	cluster  int64  // bytes
	clusters uint32 // how many there are; the first has the number 2
	uuid     string

	window   [4096]byte // of the table
	windowAt int64
}

// Offsets in the boot sector, and limits.
const (
	bpbBytsPerSec = 11
	bpbSecPerClus = 13
	bpbRsvdSecCnt = 14
	bpbNumFATs    = 16
	bpbRootEntCnt = 17
	bpbTotSec16   = 19
	bpbMedia      = 21
	bpbFATSz16    = 22
	bpbTotSec32   = 32
	bpbFATSz32    = 36
	bpbRootClus   = 44
	bsVolID16     = 39
	bsVolID32     = 67
	bsSignature   = 510

	fatDirEntry   = 32
	fatMaxDir     = 65536 * fatDirEntry
	fatMaxFAT12   = 4084  // clusters
	fatMaxFAT16   = 65524 // clusters
	fatMaxCluster = 0x0ffffff6
	fatMaxName    = 20 // entries of a long name

	attrVolume   = 0x08
	attrDir      = 0x10
	attrLongName = 0x0f
	fatDeleted   = 0xe5
	fatKanji     = 0x05 // stands for a first byte of 0xe5
	fatLowerBase = 0x08 // in the byte that Windows NT uses: the name is in lower case
	fatLowerExt  = 0x10
)

var errFAT = errors.New("damaged")

// isFAT reports whether a volume that begins so is one of FAT.
func isFAT(head []byte) bool {
	le := binary.LittleEndian
	sectorSize, perCluster := int(le.Uint16(head[bpbBytsPerSec:])), head[bpbSecPerClus]
	return (head[0] == 0xeb || head[0] == 0xe9) && le.Uint16(head[bsSignature:]) == mbrMagic &&
		sectorSize >= 512 && sectorSize <= 4096 && bits.OnesCount(uint(sectorSize)) == 1 && bits.OnesCount8(perCluster) == 1 &&
		le.Uint16(head[bpbRsvdSecCnt:]) > 0 && head[bpbNumFATs] > 0 && (head[bpbMedia] >= 0xf8 || head[bpbMedia] == 0xf0)
}

func openFAT(r io.ReaderAt, head []byte) (*fatFS, error) {
	le := binary.LittleEndian
	sectorSize := int64(le.Uint16(head[bpbBytsPerSec:]))
	f := &fatFS{r: r, width: 32, windowAt: -1, cluster: sectorSize * int64(head[bpbSecPerClus]),
		table: sectorSize * int64(le.Uint16(head[bpbRsvdSecCnt:])), rootSize: fatDirEntry * int64(le.Uint16(head[bpbRootEntCnt:])),
		first: le.Uint32(head[bpbRootClus:])}
	total, tableSize, id := int64(le.Uint16(head[bpbTotSec16:])), int64(le.Uint16(head[bpbFATSz16:])), le.Uint32(head[bsVolID16:])
	if total == 0 {
		total = int64(le.Uint32(head[bpbTotSec32:]))
	}
	wide := tableSize == 0 // as Linux tells FAT32, of which mkfs.fat also makes small ones
	if wide {
		tableSize, id, f.rootSize = int64(le.Uint32(head[bpbFATSz32:])), le.Uint32(head[bsVolID32:]), 0
	}
	f.uuid = fmt.Sprintf("%04X-%04X", id>>16, id&0xffff)
	f.root = f.table + int64(head[bpbNumFATs])*tableSize*sectorSize
	f.data = f.root + (f.rootSize+sectorSize-1)/sectorSize*sectorSize
	count := (total*sectorSize - f.data) / f.cluster
	switch {
	case count <= 0 || count > fatMaxCluster-2 || !wide && count > fatMaxFAT16:
		return nil, errFAT
	case !wide && count > fatMaxFAT12:
		f.width = 16
	case !wide:
		f.width = 12
	}
	f.clusters = uint32(count)
	if (count+2)*int64(f.width)/8 > tableSize*sectorSize {
		return nil, errFAT
	}
	return f, nil
}

// entry reads n bytes of the table, which may lie across two windows.
func (f *fatFS) entry(off int64, n int) (v uint32, err error) {
	for i := range n {
		at := off + int64(i)
		if start := at &^ int64(len(f.window)-1); start != f.windowAt {
			if got, err := f.r.ReadAt(f.window[:], f.table+start); err != nil && int64(got) <= at-start {
				f.windowAt = -1
				return 0, errFAT
			}
			f.windowAt = start
		}
		v |= uint32(f.window[at-f.windowAt]) << (8 * i)
	}
	return v, nil
}

// next is the cluster after one; ok is false at the end of the chain.
func (f *fatFS) next(c uint32) (next uint32, ok bool, err error) {
	var last uint32
	switch f.width {
	case 12:
		next, err = f.entry(int64(c)*3/2, 2)
		if c&1 != 0 {
			next >>= 4
		}
		next, last = next&0xfff, 0xff8
	case 16:
		next, err = f.entry(int64(c)*2, 2)
		last = 0xfff8
	default:
		next, err = f.entry(int64(c)*4, 4)
		next, last = next&0x0fffffff, 0x0ffffff8
	}
	return next, next < last, err
}

// chain returns the clusters from the first on, at most n.
func (f *fatFS) chain(first uint32, n int64) (out []uint32, err error) {
	n = min(n, int64(f.clusters))
	ok := true
	for c := first; ok && int64(len(out)) < n; {
		if c < 2 || c-2 >= f.clusters {
			return nil, errFAT
		}
		out = append(out, c)
		if c, ok, err = f.next(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fatNode is a file or a directory, and what fs says of it.
type fatNode struct {
	fs    *fatFS
	name  string
	dir   bool
	root  bool
	first uint32
	size  int64
}

// open returns the node's bytes. Those of a directory are as long as its chain.
func (n *fatNode) open() (*io.SectionReader, error) {
	f := n.fs
	if n.root && f.rootSize > 0 {
		return io.NewSectionReader(f.r, f.root, f.rootSize), nil
	}
	size := n.size
	if n.dir {
		size = fatMaxDir
	}
	if size == 0 {
		return io.NewSectionReader(f.r, 0, 0), nil
	}
	chain, err := f.chain(n.first, (size+f.cluster-1)/f.cluster)
	if err != nil {
		return nil, err
	}
	has := int64(len(chain)) * f.cluster
	if !n.dir && has < size {
		return nil, errFAT
	}
	return io.NewSectionReader(&fatChain{f, chain}, 0, min(size, has)), nil
}

// fatChain reads clusters one after the other.
type fatChain struct {
	fs       *fatFS
	clusters []uint32
}

// ReadAt implements io.ReaderAt.
func (c *fatChain) ReadAt(p []byte, off int64) (done int, err error) {
	for done < len(p) {
		i, in := (off+int64(done))/c.fs.cluster, (off+int64(done))%c.fs.cluster
		if i >= int64(len(c.clusters)) {
			return done, io.EOF
		}
		// Clusters in a row are read at once.
		run := int64(1)
		for i+run < int64(len(c.clusters)) && c.clusters[i+run] == c.clusters[i]+uint32(run) && run*c.fs.cluster-in < int64(len(p)-done) {
			run++
		}
		part := p[done:min(int64(len(p)), int64(done)+run*c.fs.cluster-in)]
		n, err := c.fs.r.ReadAt(part, c.fs.data+int64(c.clusters[i]-2)*c.fs.cluster+in)
		done += n
		if n < len(part) {
			return done, err
		}
	}
	return done, nil
}

// list returns a directory's entries.
func (n *fatNode) list() (out []*fatNode, err error) {
	r, err := n.open()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	var long fatLongName
	for ; len(b) >= fatDirEntry && b[0] != 0; b = b[fatDirEntry:] {
		e := b[:fatDirEntry]
		attr := e[11]
		switch {
		case e[0] == fatDeleted:
			long = fatLongName{}
			continue
		case attr&0x3f == attrLongName:
			long.add(e)
			continue
		}
		name := long.name(e)
		long = fatLongName{}
		if attr&attrVolume != 0 || name == "" || name == "." || name == ".." {
			continue
		}
		node := &fatNode{fs: n.fs, name: name, dir: attr&attrDir != 0, first: uint32(le.Uint16(e[26:])), size: int64(le.Uint32(e[28:]))}
		if n.fs.width == 32 {
			node.first |= uint32(le.Uint16(e[20:])) << 16
		}
		out = append(out, node)
	}
	return out, nil
}

// fatLongName gathers the entries of a long name, which stand in front of the short
// one, the last part first.
type fatLongName struct {
	text []uint16
	sum  byte
	left int // the parts that are to come
}

func (l *fatLongName) add(e []byte) {
	if n := int(e[0] &^ 0x40); e[0]&0x40 != 0 && n > 0 && n <= fatMaxName {
		*l = fatLongName{sum: e[13], left: n}
	} else if n != l.left || e[13] != l.sum {
		*l = fatLongName{}
	}
	if l.left == 0 {
		return
	}
	l.left--
	var part []uint16
	for _, span := range [][]byte{e[1:11], e[14:26], e[28:32]} {
		for ; len(span) > 0; span = span[2:] {
			c := binary.LittleEndian.Uint16(span)
			if c == 0 {
				l.text = append(part, l.text...)
				return
			}
			part = append(part, c)
		}
	}
	l.text = append(part, l.text...)
}

// name is the long name, if it belongs to the entry, or the short one. It is empty
// where it could not be a file's.
func (l *fatLongName) name(e []byte) string {
	var sum byte
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	name := string(utf16.Decode(l.text))
	if len(l.text) == 0 || l.left != 0 || l.sum != sum {
		short := append([]byte(nil), e[:11]...)
		if short[0] == fatKanji {
			short[0] = fatDeleted
		}
		base, ext := strings.TrimRight(string(short[:8]), " "), strings.TrimRight(string(short[8:]), " ")
		if e[12]&fatLowerBase != 0 {
			base = strings.ToLower(base)
		}
		if e[12]&fatLowerExt != 0 {
			ext = strings.ToLower(ext)
		}
		if name = base; ext != "" {
			name += "." + ext
		}
	}
	if strings.ContainsAny(name, "/\x00") {
		return ""
	}
	return name
}

// Open implements fs.FS. Names are found in upper and lower case.
func (f *fatFS) Open(name string) (fs.File, error) {
	fail := func(err error) (fs.File, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	at := &fatNode{fs: f, name: ".", dir: true, root: true, first: f.first}
	for _, part := range strings.Split(path.Clean(name), "/") {
		if part == "." {
			continue
		}
		if !at.dir {
			return fail(fs.ErrNotExist)
		}
		nodes, err := at.list()
		if err != nil {
			return fail(err)
		}
		at = nil
		for _, n := range nodes {
			if strings.EqualFold(n.name, part) {
				at = n
				break
			}
		}
		if at == nil {
			return fail(fs.ErrNotExist)
		}
	}
	if at.dir {
		return &fatDir{fatFile: fatFile{at, io.NewSectionReader(f.r, 0, 0)}}, nil
	}
	r, err := at.open()
	if err != nil {
		return fail(err)
	}
	return &fatFile{at, r}, nil
}

// fatFile is an open file.
type fatFile struct {
	*fatNode
	r *io.SectionReader
}

// Read implements fs.File.
func (f *fatFile) Read(p []byte) (int, error) { return f.r.Read(p) }

// ReadAt implements io.ReaderAt.
func (f *fatFile) ReadAt(p []byte, off int64) (int, error) { return f.r.ReadAt(p, off) }

// Stat implements fs.File.
func (f *fatFile) Stat() (fs.FileInfo, error) { return f.fatNode, nil }

// Close implements fs.File.
func (f *fatFile) Close() error { return nil }

// Name implements fs.FileInfo.
func (n *fatNode) Name() string { return n.name }

// Size implements fs.FileInfo.
func (n *fatNode) Size() int64 { return n.size }

// Mode implements fs.FileInfo.
func (n *fatNode) Mode() fs.FileMode {
	if n.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// ModTime implements fs.FileInfo: nobody asks here.
func (n *fatNode) ModTime() time.Time { return time.Time{} }

// IsDir implements fs.FileInfo.
func (n *fatNode) IsDir() bool { return n.dir }

// Sys implements fs.FileInfo.
func (n *fatNode) Sys() any { return nil }

// fatDir is an open directory.
type fatDir struct {
	fatFile
	read bool
}

// ReadDir implements fs.ReadDirFile. It returns all at once.
func (d *fatDir) ReadDir(int) (out []fs.DirEntry, err error) {
	if d.read {
		return nil, nil
	}
	d.read = true
	nodes, err := d.list()
	for _, n := range nodes {
		out = append(out, fs.FileInfoToDirEntry(n))
	}
	return out, err
}
