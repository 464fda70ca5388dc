package extlinux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/u-root/u-root/pkg/boot"
	"github.com/u-root/u-root/pkg/boot/syslinux"
	"github.com/u-root/u-root/pkg/curl"
)

// show is a menu as text: a line for each entry, * before the default.
func show(m *Menu) (lines []string) {
	for _, e := range m.Entries {
		line := e.Label + " | " + e.Title + " | " + strings.Join(append([]string{e.Kernel}, e.Initrds...), " + ") + " | " + e.Args
		if e == m.Default {
			line = "*" + line
		}
		if e.Menu != "" {
			line += " | in " + e.Menu
		}
		if e.NotUnderstood != nil {
			line += " | ? " + strings.Join(e.NotUnderstood, "; ")
		}
		lines = append(lines, line)
	}
	return lines
}

// TestDistributions has configurations in the shapes that distributions give them.
func TestDistributions(t *testing.T) {
	const root = "root=UUID=11111111-2222-3333-4444-555555555555"
	for config, want := range map[string][]string{
		"alpine.conf": {
			"lts | Linux lts | /boot/vmlinuz-lts + /boot/intel-ucode.img + /boot/initramfs-lts | " + root + " modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4",
			"*virt | Linux virt | /boot/vmlinuz-virt + /boot/initramfs-virt | " + root + " modules=ext4 console=ttyS0"},
		"debian.conf": {
			"l0 | Debian GNU/Linux 12 (bookworm) 6.1.0-18-arm64 | /boot/vmlinuz-6.1.0-18-arm64 + /boot/initrd.img-6.1.0-18-arm64 | root=/dev/vda2 ro quiet",
			"*l0r | Debian GNU/Linux 12 (bookworm) 6.1.0-18-arm64 (rescue target) | /boot/vmlinuz-6.1.0-18-arm64 + /boot/initrd.img-6.1.0-18-arm64 | root=/dev/vda2 ro single"},
		"buildroot.conf": {
			"*buildroot | buildroot | /boot/Image | console=ttyS0,115200 root=PARTUUID=aaaaaaaa-02 rootwait",
			"recovery | recovery | /Image + /rescue.cpio + /boot/modules.cpio | root=/dev/ram0"},
		"isolinux.conf": {
			"live | Live system | /live/vmlinuz + /live/initrd.img | boot=live quiet",
			"*check | Check | /live/vmlinuz + /live/initrd.img | boot=live verify | in Advanced options",
			"plain | plain | /live/vmlinuz |  | in Advanced options | ? frobnicate yes",
			"far | far | /vmlinuz | boot=live quiet | ? kernel 10.0.0.1::vmlinuz"},
	} {
		t.Run(config, func(t *testing.T) {
			files := fstest.MapFS{}
			for name, f := range testdata(t) {
				files["boot/"+name] = f
			}
			m, err := Parse(files, "boot/"+config)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(m); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func testdata(t testing.TB) fstest.MapFS {
	t.Helper()
	names, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{}
	for _, n := range names {
		if n.IsDir() {
			continue // inputs of the fuzzer
		}
		b, err := os.ReadFile(path.Join("testdata", n.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[n.Name()] = &fstest.MapFile{Data: b}
	}
	return files
}

// parse reads a text that is a configuration.
func parse(text string) (*Menu, error) {
	return Parse(fstest.MapFS{"c": {Data: []byte(text)}}, "c")
}

// TestForms has what is written in several ways.
func TestForms(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"label a\n", nil},
		{"append none\nlinux b\n", nil},
		{"LABEL a\nLINUX k\nINITRD x\nINITRD y,/z\nAPPEND one\nAPPEND two\tthree\n", []string{"*a | a | /k + /y + /z | two three"}},
		{"label a\n  kernel k\n  append initrd=x q\n  initrd y\n", []string{"*a | a | /k + /y | q"}},
		{"label a\nlinux k\nlabel b\nlinux k\nmenu default\n", []string{"a | a | /k | ", "*b | b | /k | "}},
		{"label a\nlinux k\ninitrd x,y, ../z\nlabel b\nlinux k\nappend initrd=x,y q\nlabel c\nlinux k\nappend initrd=/x initrd=y,z q\nlabel d\nlinux k\ninitrd x y\n", []string{
			"*a | a | /k + /x + /y + /z | ", "b | b | /k + /x + /y | q", "c | c | /k + /y + /z | q", "d | d | /k + /x |  | ? initrd y"}},
		{"default a\nlabel a\nlinux k\nlabel b\nlinux k\nmenu default\n", []string{"*a | a | /k | ", "b | b | /k | "}},
		{"default b single\nlabel a\nlinux k\nlabel b\nlinux k\n", []string{"a | a | /k | ", "*b | b | /k |  | ? default b single"}},
		{"default c\nlabel a\nlinux k\nlabel c\nkernel x.c32\n", []string{"*a | a | /k | "}},
		{"label a\nlinux ../../../k\ninitrd ../i\n#comment\nsay hello\n", []string{"*a | a | /k + /i | "}},
		{"menu end\nmenu begin t\nlabel a\nlinux k\nmenu end\nmenu end\n", []string{"*a | a | /k |  | in t"}},
	} {
		m, err := parse(c.text)
		if err != nil {
			t.Fatalf("%q: %v", c.text, err)
		}
		if got := show(m); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.text, got, c.want)
		}
	}
}

// TestBounds: configurations that would never end, or are no configurations.
func TestBounds(t *testing.T) {
	files := fstest.MapFS{"large": {Data: make([]byte, maxBytes+1)}, "many": {Data: []byte(strings.Repeat("label x\n", maxEntries+1))},
		"deep": {Data: []byte(strings.Repeat("menu begin x\n", maxFiles+1))}, "chain0": {}}
	for i := range maxFiles + 1 { // each includes the next one twice
		files[fmt.Sprint("chain", i)] = &fstest.MapFile{Data: []byte(strings.Repeat(fmt.Sprintf("include chain%d\n", i+1), 2))}
	}
	for _, name := range []string{"large", "many", "deep", "chain0"} {
		if _, err := Parse(files, name); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(files, "none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// text has u-root's parser find this in every file. It implements curl.FileScheme.
type text string

func (s text) Fetch(context.Context, *url.URL) (io.ReaderAt, error) {
	return strings.NewReader(string(s)), nil
}

func (s text) FetchWithoutCache(context.Context, *url.URL) (io.Reader, error) {
	return strings.NewReader(string(s)), nil
}

// TestAgainstURoot compares with u-root's parser what both understand.
func TestAgainstURoot(t *testing.T) {
	log.SetOutput(io.Discard)
	defer log.SetOutput(os.Stderr)
	for _, config := range []string{
		string(testdata(t)["debian.conf"].Data),
		"append all\nlabel a\nlinux k\nlabel b\nkernel /d/k\nappend own\nlabel c\nlinux k\nappend -\n",
		"default b\nlabel a\nmenu label A title\nlinux k\nlabel b\nlinux /k\ninitrd /i\n",
		"label a\nlinux k\nlabel b\nmenu default\nlinux k\n",
	} {
		root := &url.URL{Scheme: "disk", Path: "/"}
		theirs, err := syslinux.ParseConfigFile(context.Background(), curl.Schemes{"disk": text(config)}, "c", root, "dir")
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(fstest.MapFS{"dir/c": {Data: []byte(config)}}, "dir/c")
		if err != nil || len(m.Entries) != len(theirs) {
			t.Fatalf("%q: %d entries, u-root has %d, %v", config, len(m.Entries), len(theirs), err)
		}
		for i, image := range theirs {
			want := image.(*boot.LinuxImage)
			found := slices.IndexFunc(m.Entries, func(e *Entry) bool { return e.Title == want.Name })
			if found < 0 {
				t.Fatalf("%q: no %q", config, want.Name)
			}
			e := m.Entries[found]
			if kernel := want.Kernel.(curl.File).URL().Path; e.Kernel != kernel || e.Args != want.Cmdline || (i == 0) != (e == m.Default) || (len(e.Initrds) > 0) != (want.Initrd != nil) {
				t.Errorf("%q: %+v, u-root has %+v", config, e, want)
			}
		}
	}
}

// FuzzParse gives any text to the parser.
func FuzzParse(f *testing.F) {
	for _, file := range testdata(f) {
		f.Add(string(file.Data))
	}
	f.Add("default a b\nlabel a\nlinux x::y\nmenu begin\nmenu title ^\ninclude c\ntext help\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parse(text)
		if err != nil {
			if !errors.Is(err, ErrTooLarge) {
				t.Error(err)
			}
			return
		}
		if (m.Default == nil) != (len(m.Entries) == 0) || m.Default != nil && !slices.Contains(m.Entries, m.Default) {
			t.Error("the default is none of the entries")
		}
		for _, e := range m.Entries {
			for _, name := range append([]string{e.Kernel}, e.Initrds...) {
				if !path.IsAbs(name) || path.Clean(name) != name {
					t.Errorf("%q is no path from the root", name)
				}
			}
			if strings.ContainsAny(e.Args, "\n\t") {
				t.Errorf("arguments %q", e.Args)
			}
		}
	})
}

// TestVariables: what U-Boot would replace is not understood.
func TestVariables(t *testing.T) {
	m, err := Parse(fstest.MapFS{"extlinux.conf": {Data: []byte("label a\n linux /k\n append root=/dev/vda ${bootargs}\nlabel b\n linux /k\n append a=$b\n")}}, "extlinux.conf")
	if err != nil || len(m.Entries) != 2 || m.Entries[0].NotUnderstood == nil || m.Entries[1].NotUnderstood != nil {
		t.Errorf("%+v, %v", m, err)
	}
}
