package disk

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// makeFAT makes a file system of a directory in a file.
func makeFAT(t *testing.T, dir string, size int64, options ...string) string {
	t.Helper()
	volume := sparse(t, size)
	run(t, "mkfs.vfat", append(append([]string{"-i", "12ab34cd"}, options...), volume)...)
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 0 {
		run(t, "mcopy", append(append([]string{"-s", "-i", volume}, names...), "::/")...)
	}
	return volume
}

// TestFAT reads back what mtools has written, in each width of the table.
func TestFAT(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 40000)
	files := map[string]string{"vmlinuz": string(large), "EFI/Linux/a long name, with (signs) + ünïcode.efi": "efi", "UPPER.TXT": "upper", "lower.txt": "lower",
		"empty": "", "loader/entries/0123456789abcdef0123456789abcdef-6.1.0-cloud-amd64.conf": "entry"}
	for i := range 40 {
		files[fmt.Sprintf("many/file number %d", i)] = fmt.Sprint(i)
	}
	dir := tree(t, files)
	for _, c := range []struct {
		options string
		size    int64
		width   int
	}{
		{"-F 12", 2 << 20, 12}, {"-F 12 -s 8 -r 512", 8 << 20, 12}, {"", 64 << 20, 16}, {"-F 16 -s 1", 16 << 20, 16}, {"-F 32 -s 1", 64 << 20, 32},
	} {
		t.Run(c.options, func(t *testing.T) {
			b, err := os.ReadFile(makeFAT(t, dir, c.size, strings.Fields(c.options)...))
			if err != nil {
				t.Fatal(err)
			}
			f, err := open(&meter{r: bytes.NewReader(b), left: maxSearch}, part{size: int64(len(b))})
			if err != nil {
				t.Fatal(err)
			}
			if f.kind != "vfat" || f.uuid != "12AB-34CD" || f.FS.(*fatFS).width != c.width {
				t.Errorf("%s %s of %d bits", f.kind, f.uuid, f.FS.(*fatFS).width)
			}
			for name, want := range files {
				for _, name := range []string{name, strings.ToUpper(name), strings.ToLower(name)} {
					if got, err := fs.ReadFile(f, name); err != nil || string(got) != want {
						t.Errorf("%s: %d bytes, want %d; %v", name, len(got), len(want), err)
					}
				}
			}
			names := f.list(".")
			slices.Sort(names)
			if want := []string{"EFI", "UPPER.TXT", "empty", "loader", "lower.txt", "many", "vmlinuz"}; !slices.Equal(names, want) {
				t.Errorf("%q, want %q", names, want)
			}
			if n := len(f.list("many")); n != 40 {
				t.Errorf("%d names", n)
			}
			for _, name := range []string{"nowhere", "vmlinuz/x"} {
				if _, err := f.Open(name); err == nil {
					t.Errorf("%s was opened", name)
				}
			}
		})
	}
}

// FuzzFAT changes bytes of a small volume.
func FuzzFAT(f *testing.F) {
	const size = 64 << 10
	good := make([]byte, size)
	copy(good, "\xeb\x3c\x90mkfs.fat\x00\x02\x01\x01\x00\x02\x10\x00\x80\x00\xf8\x01\x00")
	copy(good[bsSignature:], "\x55\xaa")
	copy(good[512:], "\xf8\xff\xff\xff\x4f\x00\xff\xff\xff") // cluster 2 is whole, 3 is followed by 4
	copy(good[3*512:], "A          \x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00")
	copy(good[4*512:], "K          \x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x08\x03\x00\x00")
	if v, err := openFAT(bytes.NewReader(good), good); err != nil || len((&fileSystem{FS: v}).list("a")) != 1 {
		f.Fatal("the volume is not good", err)
	}
	f.Add(uint16(11), []byte{0})
	f.Add(uint16(515), []byte{3, 0x30, 0})
	f.Add(uint16(3*512+26), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint16, change []byte) {
		b := bytes.Clone(good)
		copy(b[at:], change)
		if !isFAT(b) {
			return
		}
		v, err := openFAT(bytes.NewReader(b), b)
		if err != nil {
			return
		}
		fs.WalkDir(v, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || strings.Count(name, "/") > 4 {
				return fs.SkipDir
			}
			if !d.IsDir() {
				fs.ReadFile(v, name)
			}
			return nil
		})
	})
}
