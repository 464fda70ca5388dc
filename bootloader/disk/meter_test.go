package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
)

// counting counts what is read of files.
type counting struct {
	fs.FS
	n *int
}

type countingFile struct {
	fs.File
	n *int
}

func (f countingFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	*f.n += n
	return n, err
}

func (c counting) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if _, dir := f.(fs.ReadDirFile); err != nil || dir {
		return f, err
	}
	return countingFile{f, c.n}, nil
}

// TestMeter: what a disk has read is bounded, however it leads from one thing to the next,
// and also where nothing of it is read.
func TestMeter(t *testing.T) {
	m := &meter{r: bytes.NewReader(make([]byte, 1<<16)), left: 10 * perRead}
	b := make([]byte, perRead)
	for range 8 {
		if _, err := m.ReadAt(b[:1], 0); err != nil {
			t.Fatal(err)
		}
	}
	i := &extInode{fs: &extFS{r: m, hole: m.spend, block: 1024}, size: 1 << 40} // without blocks
	if n, err := io.ReadFull(io.NewSectionReader(i, 0, i.size), make([]byte, 4*perRead)); !errors.Is(err, errMeter) || n > 2*perRead {
		t.Errorf("%d bytes of a hole, %v", n, err)
	}
	if _, err := m.ReadAt(b, 0); !errors.Is(err, errMeter) || !m.over {
		t.Error(err)
	}
}

// TestLargeConfigurations: a configuration is read and kept only if it is as small as one
// is. Those of a directory may all be one large file.
func TestLargeConfigurations(t *testing.T) {
	large := "title a\nlinux /k\noptions " + string(bytes.Repeat([]byte("x"), maxConfig))
	files := mapFS{}
	for n := range 20 {
		files[fmt.Sprintf("loader/entries/%d.conf", n)] = large
	}
	n := 0
	f := &fileSystem{FS: counting{files, &n}}
	if out := blsEntries(f); len(out) != 0 || n != 0 {
		t.Errorf("%d entries, %d bytes are read", len(out), n)
	}
}

// TestManyFiles: names, entries and what is loaded are bounded.
func TestManyFiles(t *testing.T) {
	files := mapFS{"k": "kernel"}
	for n := range maxEntries + 10 {
		files[fmt.Sprintf("loader/entries/%d.conf", n)] = "linux /k\n"
	}
	if out := loaderEntries([]*fileSystem{{FS: files}, {FS: files}}); len(out) != maxEntries {
		t.Errorf("%d entries", len(out))
	}
}
