package disk

import (
	"io/fs"
	"testing/fstest"
)

// mapFS is a file system in memory.
type mapFS map[string]string

// Open implements fs.FS.
func (m mapFS) Open(name string) (fs.File, error) {
	out := fstest.MapFS{}
	for k, v := range m {
		out[k] = &fstest.MapFile{Data: []byte(v)}
	}
	return out.Open(name)
}
