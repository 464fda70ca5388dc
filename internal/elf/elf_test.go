package elf

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"testing"
)

// TestSelf reads this program as the standard library does.
func TestSelf(t *testing.T) {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	want, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	f, err := Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != uint16(want.Machine) || f.Entry != want.Entry || len(f.Segments) != len(want.Progs) {
		t.Errorf("machine %d, entry %#x, %d segments", f.Machine, f.Entry, len(f.Segments))
	}
	for i, s := range f.Segments {
		if p := want.Progs[i]; s != (Segment{uint32(p.Type), p.Off, p.Paddr, p.Filesz, p.Memsz}) {
			t.Errorf("segment %d: %+v, not %+v", i, s, p.ProgHeader)
		}
	}
	id, err := want.Section(".note.go.buildid").Data()
	if err != nil {
		t.Fatal(err)
	}
	const goBuildID = 4
	if got := f.Note("Go", goBuildID); len(got) == 0 || !bytes.Contains(id, got) {
		t.Errorf("build ID %q, not in %q", got, id)
	}
	if got := f.Note("Nobody", goBuildID); got != nil {
		t.Errorf("somebody's note: %q", got)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		file []byte
		want error
	}{
		{"nothing", nil, ErrFormat},
		{"text", bytes.Repeat([]byte("text"), 100), ErrFormat},
		{"no class", append([]byte(Magic), make([]byte, 60)...), ErrFormat},
		{"32 bits", append([]byte(Magic+"\x01\x01"), make([]byte, 60)...), Err32Bit},
		{"big-endian", append([]byte(Magic+"\x02\x02"), make([]byte, 60)...), ErrFormat},
		{"cut off", []byte(Magic + "\x02\x01"), ErrFormat},
	} {
		if _, err := Read(bytes.NewReader(c.file)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	broken := errors.New("broken")
	if _, err := Read(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// FuzzRead reads any file.
func FuzzRead(f *testing.F) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	defer self.Close()
	head := make([]byte, 8192)
	if _, err := io.ReadFull(self, head); err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Read(bytes.NewReader(b))
		if err == nil {
			file.Note("Go", 4)
		}
	})
}
