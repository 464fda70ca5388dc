package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	oracle "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// device is the metadata of a tree with its segments behind it.
func device(t *testing.T, root *Inode, segments ...[]byte) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "meta"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var sizes []int64
	var data []byte
	for _, s := range segments {
		s = append(slices.Clone(s), make([]byte, roundUp(len(s), SegmentAlign)-len(s))...)
		sizes, data = append(sizes, int64(len(s))), append(data, s...)
	}
	size, err := Write(f, root, sizes)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return append(b, data...)
}

func dir(mode uint16, d Directory) *Inode { return &Inode{Mode: unix.S_IFDIR | mode, Entries: d} }

// TestRead has another implementation read each kind of file.
func TestRead(t *testing.T) {
	when := time.Unix(1234567890, 987654321)
	text := strings.Repeat("contents\n", 1000)
	file := &Inode{Mode: unix.S_IFREG | 0o4755, UID: 70000, GID: 12, Modified: when, Size: int64(len(text)), Data: Extent{1, 1}}
	file.SetXattrs(map[string]string{"user.shape": "round"})
	file.SetXattrs(map[string]string{"user.colour": "blue", "security.capability": "\x01\x00\x00\x02", "system.other": "x", "trusted.": "x"})
	if len(file.Xattrs) != 2 {
		t.Errorf("%d attributes: one that EROFS has no number for was taken, or one of before is there", len(file.Xattrs))
	}
	many := Directory{}
	for i := range 3000 {
		many[fmt.Sprintf("file-%04d", i)] = &Inode{Mode: unix.S_IFREG | 0o644}
	}
	root := dir(0o755, Directory{
		"file": file, "other": file, "empty": {Mode: unix.S_IFREG | 0o600},
		"-first": dir(0o700, nil), "many": dir(0o1777, many),
		"link":     {Mode: unix.S_IFLNK | 0o777, Target: "many/file-0001"},
		"longlink": {Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("x/", MaxTarget/2)},
		"null":     {Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3}, "disk": {Mode: unix.S_IFBLK | 0o660, Major: 259, Minor: 0x12345},
		"fifo": {Mode: unix.S_IFIFO | 0o644}, strings.Repeat("n", MaxName): {Mode: unix.S_IFREG},
	})
	img, err := oracle.Open(bytes.NewReader(device(t, root, []byte("other"), append(make([]byte, BlockSize), text...))))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "other"} {
		if b, err := fs.ReadFile(img, name); err != nil || string(b) != text {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		st := stat(t, img, name)
		if st.UID != 70000 || st.GID != 12 || st.Nlink != 2 || st.Mtime != uint64(when.Unix()) || st.MtimeNs != uint32(when.Nanosecond()) {
			t.Errorf("%s: %+v", name, st)
		}
		if want := map[string]string{"user.colour": "blue", "security.capability": "\x01\x00\x00\x02"}; !maps.Equal(st.Xattrs, want) {
			t.Errorf("%s: attributes %q", name, st.Xattrs)
		}
	}
	entries, err := fs.ReadDir(img, "many")
	if err != nil || len(entries) != len(many) {
		t.Fatalf("many: %d entries, %v", len(entries), err)
	}
	for name, n := range root.Entries {
		mode := stat(t, img, name).Mode
		if got := mode.Perm(); got != fs.FileMode(n.Mode).Perm() {
			t.Errorf("%s: mode %v", name, mode)
		}
		if n.Target != "" {
			if got, err := fs.ReadLink(img, name); err != nil || got != n.Target {
				t.Errorf("%s: %d bytes of a link, %v", name, len(got), err)
			}
		}
	}
	if got := stat(t, img, "disk").Rdev; got != deviceNumber(259, 0x12345) {
		t.Errorf("disk: device %#x", got)
	}
	if got := stat(t, img, ".").Nlink; got != 4 {
		t.Errorf("the root has %d links", got)
	}
}

func stat(t *testing.T, img fs.FS, name string) *oracle.Stat {
	t.Helper()
	info, err := fs.Lstat(img, name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*oracle.Stat)
}

// TestSizes writes directories and links whose tails end at each place of a block.
func TestSizes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	root := dir(0o755, Directory{})
	for i := range 400 {
		d := Directory{}
		for j := range random.IntN(80) {
			d[fmt.Sprintf("%d-%s", j, strings.Repeat("n", random.IntN(250)))] = &Inode{Mode: unix.S_IFLNK, Target: strings.Repeat("t", 1+random.IntN(MaxTarget))}
		}
		n := dir(0o755, d)
		xattrs := map[string]string{}
		for j := range random.IntN(4) {
			xattrs[fmt.Sprintf("user.%d", j)] = strings.Repeat("v", random.IntN(3000))
		}
		n.SetXattrs(xattrs)
		root.Entries[fmt.Sprint(i)] = n
	}
	img, err := oracle.Open(bytes.NewReader(device(t, root)))
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range root.Entries {
		st := stat(t, img, name)
		for _, x := range n.Xattrs {
			if st.Xattrs[x.Name()] != x.Value() {
				t.Errorf("%s: %s has %d bytes, not %d", name, x.Name(), len(st.Xattrs[x.Name()]), len(x.Value()))
			}
		}
		entries, err := fs.ReadDir(img, name)
		if err != nil || len(entries) != len(n.Entries) {
			t.Fatalf("%s: %d entries, not %d: %v", name, len(entries), len(n.Entries), err)
		}
		for _, e := range entries {
			if got, err := fs.ReadLink(img, path.Join(name, e.Name())); err != nil || got != n.Entries[e.Name()].Target {
				t.Errorf("%s/%s: %d bytes, %v", name, e.Name(), len(got), err)
			}
		}
	}
}

// TestRefused: what has no room is an error, and never a broken file system.
func TestRefused(t *testing.T) {
	shared := dir(0o755, nil)
	xattrs := dir(0o755, nil)
	values := map[string]string{}
	for i := range 5 {
		values[fmt.Sprint("user.", i)] = strings.Repeat("v", maxXattr)
	}
	xattrs.SetXattrs(values)
	for name, c := range map[string]struct {
		tree     Directory
		segments []int64
		tooLarge bool
	}{
		"name":           {tree: Directory{strings.Repeat("n", MaxName+1): dir(0o755, nil)}, tooLarge: true},
		"link":           {tree: Directory{"l": {Mode: unix.S_IFLNK, Target: strings.Repeat("t", BlockSize)}}, tooLarge: true},
		"attributes":     {tree: Directory{"x": xattrs}, tooLarge: true},
		"two parents":    {tree: Directory{"a": shared, "b": shared}},
		"odd segment":    {segments: []int64{BlockSize}},
		"device":         {segments: []int64{1 << 45}, tooLarge: true},
		"no segment":     {tree: Directory{"f": {Mode: unix.S_IFREG, Size: 1}}},
		"behind segment": {tree: Directory{"f": {Mode: unix.S_IFREG, Size: 2, Data: Extent{0, SegmentAlign/BlockSize - 1}}, "g": {Mode: unix.S_IFREG, Size: BlockSize + 1, Data: Extent{0, SegmentAlign/BlockSize - 1}}}, segments: []int64{SegmentAlign}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Write(discard{}, dir(0o755, c.tree), c.segments)
			if err == nil || errors.Is(err, ErrTooLarge) != c.tooLarge {
				t.Error(err)
			}
		})
	}
}

// discard is a file that keeps nothing.
type discard struct{}

func (discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
