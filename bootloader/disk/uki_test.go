package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// unified makes a unified kernel image with a kernel, and arguments if there are some.
func unified(cmdline string) string {
	le := binary.LittleEndian
	sections := [][2]string{{".linux", "kernel"}}
	if cmdline != "" {
		sections = append(sections, [2]string{".cmdline", cmdline})
	}
	const pe, header, section = 0x40, 24, 40
	b := make([]byte, pe+header+section*len(sections))
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], pe)
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+6:], uint16(len(sections)))
	for i, s := range sections {
		h := b[pe+header+section*i:]
		copy(h[:8], s[0])
		le.PutUint32(h[8:], uint32(len(s[1])))
		le.PutUint32(h[16:], uint32(len(s[1])))
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, s[1]...)
	}
	return string(b)
}

// TestUnifiedIsReadOnce: an image is read once to be listed, with and without arguments, and
// also if several entries name it.
func TestUnifiedIsReadOnce(t *testing.T) {
	without, with := unified(""), unified("quiet")
	for _, c := range []struct {
		name  string
		files mapFS
		args  []string
	}{
		{"by themselves", mapFS{"EFI/Linux/a.efi": without, "EFI/Linux/b.efi": with}, []string{"quiet", ""}},
		{"by entries", mapFS{"u.efi": with, "loader/entries/1.conf": "efi /u.efi\n", "loader/entries/2.conf": "linux u.efi\n"}, []string{"quiet", "quiet"}},
		{"no images", mapFS{"u.efi": "x", "loader/entries/1.conf": "efi /u.efi\n", "loader/entries/2.conf": "linux /u.efi\n"}, []string{"", ""}},
	} {
		n, want := 0, 0
		for _, content := range c.files {
			want += len(content)
		}
		list, err := entriesOf([]*fileSystem{{FS: counting{c.files, &n}}}, nil)
		var args []string
		for _, e := range list {
			args = append(args, e.Args)
		}
		if err != nil || n != want || !slices.Equal(args, c.args) {
			t.Errorf("%s: %d of %d bytes are read, arguments %q, %v", c.name, n, want, args, err)
		}
	}
}

// TestCutOff: a list that has not all entries says why, and none of them is the default.
func TestCutOff(t *testing.T) {
	files := mapFS{"k": "kernel", "loader/entries/a.conf": "linux /k\n"}
	over := &meter{over: true}
	many := mapFS{"k": "kernel"}
	for n := range maxEntries {
		many[fmt.Sprintf("loader/entries/%d.conf", n)] = "linux /k\n"
	}
	for _, c := range []struct {
		f    *fileSystem
		want error
	}{
		{&fileSystem{FS: files, meter: &meter{}}, nil},
		{&fileSystem{FS: files, meter: over}, errMeter},
		{&fileSystem{FS: many}, errEntries},
	} {
		list, err := entriesOf([]*fileSystem{c.f}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Default(list)
		if c.want == nil {
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, ErrUnclear) || !slices.Contains(list[0].Unclear, c.want.Error()) {
			t.Errorf("%v, %q", err, list[0].Unclear)
		}
	}
	if _, err := entriesOf([]*fileSystem{{FS: mapFS{}, meter: over}}, nil); !errors.Is(err, ErrNoEntry) || !errors.Is(err, errMeter) {
		t.Error(err)
	}
}
