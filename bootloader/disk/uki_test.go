package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// unified makes a unified kernel image with a kernel, and arguments if there are some.
func unified(cmdline string) string {
	sections := [][2]string{{".linux", "kernel"}}
	if cmdline != "" {
		sections = append(sections, [2]string{".cmdline", cmdline})
	}
	return image(sections...)
}

// image makes a PE file of sections, each a name and its contents.
func image(sections ...[2]string) string {
	le := binary.LittleEndian
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
		{"no images", mapFS{"u.efi": "x", "loader/entries/1.conf": "efi /u.efi\n", "loader/entries/2.conf": "linux /u.efi\n"}, []string{""}},
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

// TestUnifiedOrder: images are ordered, called and asked for as systemd-boot does it, also in a
// loader.conf, and by a file that names a profile.
func TestUnifiedOrder(t *testing.T) {
	osrel := func(id, version string) [2]string {
		return [2]string{".osrel", "ID=" + id + "\nPRETTY_NAME=" + id + "\nVERSION_ID=" + version + "\n"}
	}
	kernel := [2]string{".linux", "kernel"}
	two := image(kernel, osrel("fedora", "41"), [2]string{".cmdline", "one"}, [2]string{".profile", "ID=main"}, [2]string{".profile", "ID=rescue"}, [2]string{".cmdline", "two"})
	files := mapFS{
		"EFI/Linux/arch-fallback.efi":    image(kernel, osrel("arch", ""), [2]string{".cmdline", "fallback"}),
		"EFI/Linux/arch.efi":             image(kernel, osrel("arch", ""), [2]string{".cmdline", "arch"}),
		"EFI/Linux/fedora_40+3.efi":      image(kernel, osrel("fedora", "40"), [2]string{".cmdline", "old"}),
		"EFI/Linux/fedora.efi":           two,
		"other.efi":                      two,
		"loader/entries/by-profile.conf": "uki /other.efi\nprofile 1\n",
		"loader/entries/none.conf":       "uki /other.efi\nprofile 2\n",
	}
	for config, want := range map[string]string{
		"":                       "arch fallback one two old  two",
		"default fedora.efi":     "one arch fallback two old  two",
		"default fedora.efi@1":   "two arch fallback one old  two",
		"default fedora_40.efi":  "old arch fallback one two  two",
		"default arch-*":         "fallback arch one two old  two",
		"default by-profile.*":   "two arch fallback one two old ",
		"default none.conf":      "arch fallback one two old  two",
		"default nowhere.conf\n": "arch fallback one two old  two",
	} {
		files["loader/loader.conf"] = config
		entries, err := entriesOf([]*fileSystem{{FS: files}}, nil)
		var args []string
		for _, e := range entries {
			args = append(args, e.Args)
		}
		if got := strings.Join(args, " "); err != nil || got != want {
			t.Errorf("%q: %q, want %q, %v", config, got, want, err)
		}
	}
}

// TestAddons: what lies beside an image is for it, and what is not understood of it is said.
func TestAddons(t *testing.T) {
	addon := func(name string) string {
		return image([2]string{".cmdline", name}, [2]string{".initrd", "disk of " + name})
	}
	files := mapFS{
		"EFI/Linux/a.efi":                           unified("a"),
		"EFI/Linux/a.efi.extra.d/X.ADDON.EFI":       addon("own"),
		"EFI/Linux/b+2-1.efi":                       unified("b"),
		"EFI/Linux/b.efi.extra.d/secret.cred":       "x",
		"EFI/Linux/b+2-1.efi.extra.d/bad.addon.efi": "x",
		"loader/addons/all.addon.efi":               addon("all"),
		"loader/addons/README":                      "",
	}
	entries, err := entriesOf([]*fileSystem{{FS: files}}, nil)
	if err != nil || len(entries) != 2 || entries[0].Args != "a all own" || entries[1].Args != "b all" ||
		!slices.Equal(entries[1].Unclear, []string{"EFI/Linux/b+2-1.efi.extra.d/bad.addon.efi is no addon", "EFI/Linux/b.efi.extra.d/secret.cred"}) {
		t.Fatalf("%+v %+v, %v", entries[0], entries[1], err)
	}
	_, initrds, err := entries[0].Load()
	if err != nil || len(initrds) != 2 || string(initrds[0]) != "disk of all" || string(initrds[1]) != "disk of own" {
		t.Errorf("%q, %v", initrds, err)
	}
}
