package erofs

import (
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// fileTypes are the types of entries, by the types of files (EROFS_FT_*).
var fileTypes = map[uint16]uint8{
	unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
}

// dirNames are the names of a directory as EROFS has them: "." and ".." among them, in the
// order of their bytes, since Linux searches by halves.
func dirNames(d Directory) []string {
	return slices.Sorted(func(yield func(string) bool) {
		if yield(".") && yield("..") {
			maps.Keys(d)(yield)
		}
	})
}

// directoryBlocks cuts names into those of each block: entries first, names behind them.
func directoryBlocks(names []string) (blocks [][]string) {
	start, used := 0, 0
	for i, name := range names {
		if used+direntSize+len(name) > BlockSize {
			blocks, start, used = append(blocks, names[start:i]), i, 0
		}
		used += direntSize + len(name)
	}
	return append(blocks, names[start:])
}

// blockUse is how much of a block its names take, in bytes.
func blockUse(names []string) (n int) {
	for _, name := range names {
		n += direntSize + len(name)
	}
	return n
}

// directorySize is the size in bytes of a directory of such blocks: all but the last are whole.
func directorySize(blocks [][]string) int {
	last := len(blocks) - 1
	return last*BlockSize + blockUse(blocks[last])
}

// directory returns a directory's contents.
func (n planned) directory() []byte {
	le := binary.LittleEndian
	blocks := directoryBlocks(dirNames(n.Entries))
	b := make([]byte, directorySize(blocks))
	for i, names := range blocks {
		block := b[i*BlockSize:]
		at := len(names) * direntSize
		for j, name := range names {
			file := n.named(name)
			entry := block[j*direntSize:]
			le.PutUint64(entry, file.place.nid())
			le.PutUint16(entry[8:], uint16(at))
			entry[10] = fileTypes[file.Mode&unix.S_IFMT]
			at += copy(block[at:], name)
		}
	}
	return b
}

// named returns the file of a name in a directory.
func (n planned) named(name string) *Inode {
	switch name {
	case ".":
		return n.Inode
	case "..":
		return n.parent
	}
	return n.Entries[name]
}
