package ext4

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	file = unix.S_IFREG | 0o644
	dir  = unix.S_IFDIR | 0o755
)

// image is a file system on its way, and then a file for e2fsprogs.
type image struct {
	*Writer
	t    *testing.T
	file *os.File
}

func newImage(t *testing.T) *image {
	t.Helper()
	for _, tool := range []string{"e2fsck", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s: install e2fsprogs", tool)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	return &image{w, t, f}
}

func (i *image) create(name string, a Attributes, content string) {
	i.t.Helper()
	if err := i.Create(name, a, strings.NewReader(content)); err != nil {
		i.t.Fatal(err)
	}
}

// finish closes the file system and has e2fsck judge it.
func (i *image) finish(free int64) {
	i.t.Helper()
	if err := i.Close(free); err != nil {
		i.t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", i.file.Name()).CombinedOutput(); err != nil || bytes.Contains(out, []byte("Fix?")) {
		i.t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// debugfs returns what a command of debugfs prints.
func (i *image) debugfs(command string) string {
	i.t.Helper()
	out, err := exec.Command("debugfs", "-R", command, i.file.Name()).Output()
	if err != nil {
		i.t.Fatal(err)
	}
	return string(out)
}

func TestFiles(t *testing.T) {
	i := newImage(t)
	at := time.Date(2100, 2, 3, 4, 5, 6, 789, time.UTC)
	long := strings.Repeat("long/", 40)
	i.create("./", Attributes{Mode: unix.S_IFDIR | 0o711, UID: 7, Modified: at}, "")
	i.create("a/b/c", Attributes{Mode: unix.S_IFREG | 0o4751, UID: 70000, GID: 80001, Modified: at}, "content")
	i.create("a", Attributes{Mode: unix.S_IFDIR | 0o1777, Modified: time.Unix(-5, 0)}, "")
	i.create("empty", Attributes{Mode: file, Modified: at}, "")
	i.create("short", Attributes{Mode: unix.S_IFLNK | 0o777, Target: "a/b/c"}, "")
	i.create("long", Attributes{Mode: unix.S_IFLNK | 0o777, Target: long}, "")
	i.create("null", Attributes{Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3}, "")
	i.create("disk", Attributes{Mode: unix.S_IFBLK | 0o660, Major: 259, Minor: 300}, "")
	i.create("pipe", Attributes{Mode: unix.S_IFIFO | 0o600}, "")
	if err := i.Link("a/b/c", "other/name"); err != nil {
		t.Fatal(err)
	}
	i.finish(0)
	for command, wants := range map[string][]string{
		"cat /other/name":  {"content"},
		"stat /":           {"Mode:  0711", "User:     7 "},
		"stat /a/b/c":      {"Type: regular", "Mode:  04751", "User: 70000 ", "Group: 80001 ", "Links: 2 ", "Size: 7", "mtime: 0xf4b211f2:00000c55 "},
		"stat /a":          {"Type: directory", "Mode:  01777", "mtime: 0xfffffffb:00000000 "},
		"stat /empty":      {"Size: 0", "Blockcount: 0"},
		"stat /short":      {`Fast link dest: "a/b/c"`},
		"stat /long":       {"Type: symlink", fmt.Sprintf("Size: %d\n", len(long)), "Blockcount: 8"},
		"stat /null":       {"Type: character special", "Device major/minor number: 01:03"},
		"stat /disk":       {"Type: block special", "Device major/minor number: 259:300"},
		"stat /pipe":       {"Type: FIFO", "Mode:  0600"},
		"stat /lost+found": {"Type: directory", "Mode:  0700"},
	} {
		got := i.debugfs(command)
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", command, want, got)
			}
		}
	}
}

// TestReplace creates what is there already.
func TestReplace(t *testing.T) {
	i := newImage(t)
	big := strings.Repeat("x", 5*blockSize)
	manyXattrs := map[string]string{"user.much": strings.Repeat("y", 1000)}
	i.create("f", Attributes{Mode: file, Xattrs: manyXattrs}, big)
	i.create("g", Attributes{Mode: file}, big)
	i.create("d/inside", Attributes{Mode: file}, "still there")
	i.create("d", Attributes{Mode: dir, Xattrs: manyXattrs}, "")
	i.create("d", Attributes{Mode: dir}, "")
	i.create("f", Attributes{Mode: file}, "new")
	if err := i.Link("f", "g"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"a file below a file", i.Create("f/x", Attributes{Mode: file}, nil), unix.ENOTDIR},
		{"a link to nothing", i.Link("nothing", "h"), fs.ErrNotExist},
		{"a link to a directory", i.Link("d", "h"), unix.EISDIR},
		{"a file as the root", i.Create("/", Attributes{Mode: file}, nil), fs.ErrExist},
		{"a long name", i.Create(strings.Repeat("n", 256), Attributes{Mode: file}, nil), unix.ENAMETOOLONG},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	if err := i.Create("d", Attributes{Mode: file}, nil); err == nil {
		t.Error("a file replaces a directory")
	}
	i.finish(0)
	if got := i.debugfs("cat g"); got != "new" {
		t.Errorf("g holds %.20q", got)
	}
	if got := i.debugfs("cat d/inside"); got != "still there" {
		t.Errorf("d/inside holds %q", got)
	}
}

func TestXattrs(t *testing.T) {
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" +
		"\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	i := newImage(t)
	much := strings.Repeat("much ", 300)
	i.create("few", Attributes{Mode: file, Xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x04", "user.a": "b", "system.other": "x"}}, "")
	i.create("many", Attributes{Mode: file, Xattrs: map[string]string{
		"user.much": much, "user.b": "", "trusted.a": "1", aclAccess: acl}}, "content")
	if err := i.Create("toomany", Attributes{Mode: file, Xattrs: map[string]string{"user.x": strings.Repeat("x", blockSize)}}, nil); err == nil {
		t.Error("attributes larger than a block are taken")
	}
	i.unlink(i.inodes[rootInode-1], "toomany")
	i.finish(0)
	for command, want := range map[string]string{
		"ea_get few user.a":           "b",
		"ea_get many user.much":       much,
		"ea_get many trusted.a":       "1",
		"ea_list few":                 "security.capability (6) = 01 00 00 02 00 04",
		"ea_list many":                "user.b (0)",
		"ea_get -x many " + aclAccess: "02 00 00 00 01 00 07 00",
	} {
		if got := i.debugfs(command); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in %q", command, want, got)
		}
	}
	if got := i.debugfs("ea_list few"); strings.Contains(got, "other") {
		t.Errorf("an attribute that ext4 has no place for: %s", got)
	}
}

// TestScattered makes files of so many pieces that their trees have three levels.
func TestScattered(t *testing.T) {
	i := newImage(t)
	i.create("a", Attributes{Mode: file}, "")
	i.create("b", Attributes{Mode: file}, "")
	root := i.inodes[rootInode-1]
	block := make([]byte, blockSize)
	sum := sha256.New()
	for n := range 3000 {
		copy(block, fmt.Sprint(n))
		sum.Write(block)
		for _, name := range []string{"a", "b"} {
			f := root.children[name]
			f.size += blockSize
			if err := i.append(f, block); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"a", "b"} {
		if err := i.placeTree(root.children[name]); err != nil {
			t.Fatal(err)
		}
	}
	i.finish(0)
	if got := sha256.Sum256([]byte(i.debugfs("cat b"))); !bytes.Equal(got[:], sum.Sum(nil)) {
		t.Error("b holds something else")
	}
}

// TestLarge makes files and directories that are in several groups, and room behind
// them.
func TestLarge(t *testing.T) {
	i := newImage(t)
	const size = 700 << 20
	if err := i.Create("zeros", Attributes{Mode: file}, io.LimitReader(zeros{}, size)); err != nil {
		t.Fatal(err)
	}
	for n := range inodesPerGroup + 100 {
		i.create(fmt.Sprintf("many/%d-%s", n, strings.Repeat("n", n%200)), Attributes{Mode: file}, "")
	}
	i.finish(1 << 30)
	st, err := i.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if stat := st.Sys().(*syscall.Stat_t); stat.Blocks*512 > 32<<20 {
		t.Errorf("a file of zeros takes %d bytes", stat.Blocks*512)
	}
	var free, blocks int64
	for _, line := range strings.Split(i.debugfs("show_super_stats -h"), "\n") {
		fmt.Sscanf(line, "Free blocks: %d", &free)
		fmt.Sscanf(line, "Block count: %d", &blocks)
	}
	if free*blockSize < 1<<30 || blocks*blockSize != st.Size() {
		t.Errorf("%d of %d blocks are free, in %d bytes", free, blocks, st.Size())
	}
	if err := i.Close(MaxSize); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too much room: %v", err)
	}
}

// TestJournal: e2fsprogs and the superblock's copy of the inode find the journal, and it is empty.
func TestJournal(t *testing.T) {
	i := newImage(t)
	i.create("f", Attributes{Mode: file}, "content")
	if err := i.AddJournal(); err != nil {
		t.Fatal(err)
	}
	i.create("g", Attributes{Mode: file}, strings.Repeat("x", 200<<20)) // so that it is followed by other groups
	i.finish(1 << 30)
	for command, wants := range map[string][]string{
		"show_super_stats -h": {"has_journal", "Journal inode:            8", "Journal backup:           inode blocks"},
		"stat <8>":            {fmt.Sprintf("Size: %d\n", journalBlocks*blockSize), "Mode:  0600"},
		"logdump":             {"Journal starts at block 0, transaction 1"},
	} {
		got := i.debugfs(command)
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", command, want, got)
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
