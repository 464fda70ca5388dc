package uki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// image makes a PE file of sections, each a name and its contents.
func image(sections ...[2]string) []byte {
	le := binary.LittleEndian
	const pe = 0x40
	b := make([]byte, pe+peHeaderSize+sectionSize*len(sections))
	copy(b, "MZ")
	le.PutUint32(b[peHeaderAt:], pe)
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+peSections:], uint16(len(sections)))
	for i, s := range sections {
		h := b[pe+peHeaderSize+sectionSize*i:]
		copy(h[:8], s[0])
		le.PutUint32(h[8:], uint32(len(s[1])))
		le.PutUint32(h[16:], uint32(len(s[1])+3)&^3) // the file's alignment
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, s[1]...)
		b = append(b, make([]byte, (4-len(s[1])%4)%4)...)
	}
	return b
}

func TestParse(t *testing.T) {
	all, err := Parse(image([2]string{".text", "stub"}, [2]string{".osrel", "ID=x\nPRETTY_NAME=\"An OS\"\nVERSION_ID=7\n"}, [2]string{".uname", "6.1"}, [2]string{".linux", "kernel"},
		[2]string{".ucode", "ucode"}, [2]string{".initrd", "initrd"}, [2]string{".cmdline", "root=/dev/vda2\n quiet\n\x00"}))
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	p := all[0]
	if p.OS != "An OS" || p.Sort != "x" || p.Version != "7" || string(p.Linux) != "kernel" || p.Cmdline != "root=/dev/vda2 quiet" || string(bytes.Join(p.Initrds, []byte("+"))) != "ucode+initrd" {
		t.Errorf("%+v", p)
	}
	all, err = Parse(image([2]string{".linux", "kernel"}, [2]string{".cmdline", "a"}, [2]string{".profile", "ID=main\n"}, [2]string{".profile", "ID=reset\nTITLE=Factory reset"}, [2]string{".cmdline", "b"}))
	if err != nil || len(all) != 2 || all[0].Cmdline != "a" || all[0].Title != "main" || all[1].Cmdline != "b" || all[1].Title != "Factory reset" || string(all[1].Linux) != "kernel" {
		t.Errorf("%+v, %v", all, err)
	}
	a, err := ParseAddon(image([2]string{".cmdline", "quiet"}, [2]string{".initrd", "i"}))
	if err != nil || a.Cmdline != "quiet" || len(a.Initrds) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := ParseAddon(image([2]string{".linux", "kernel"})); !errors.Is(err, ErrNot) {
		t.Error(err)
	}
	for _, b := range [][]byte{nil, []byte("MZ"), make([]byte, 1000), image([2]string{".text", "no kernel"}), image([2]string{".linux", "cut off"})[:120]} {
		if _, err := Parse(b); !errors.Is(err, ErrNot) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(image([2]string{".linux", "kernel"}, [2]string{".profile", "ID=main\n"}, [2]string{".initrd", "x"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := Parse(b)
		for _, p := range all {
			if len(p.Linux) == 0 || err != nil {
				t.Errorf("%+v, %v", p, err)
			}
		}
	})
}

// TestOverlap: sections that lie over one another do not make more of an image than it is.
func TestOverlap(t *testing.T) {
	sections := [][2]string{{".linux", string(make([]byte, 1000))}}
	for range 100 {
		sections = append(sections, [2]string{".initrd", ""})
	}
	b := image(sections...)
	le := binary.LittleEndian
	for i := range 100 {
		h := b[0x40+peHeaderSize+sectionSize*(i+1):]
		le.PutUint32(h[8:], uint32(len(b)))
		le.PutUint32(h[16:], uint32(len(b)))
		le.PutUint32(h[20:], 0)
	}
	if all, err := Parse(b); !errors.Is(err, ErrNot) {
		t.Errorf("%d profiles of %d bytes, %v", len(all), all[0].size(), err)
	}
}
