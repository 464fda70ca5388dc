package image

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmm/storage"
)

// TestForeignFormats: an image of another format is not taken for a raw disk, unless one
// says that it is one.
func TestForeignFormats(t *testing.T) {
	dir := t.TempDir()
	at := func(offset int, magic string) []byte {
		b := make([]byte, 1<<16)
		copy(b[offset:], magic)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    string // "" is Raw
	}{
		"sparse.vmdk":    {at(0, "KDMV"), "vmdk"},
		"esx.vmdk":       {at(0, "COWD"), "vmdk"},
		"text.vmdk":      {[]byte("# Disk DescriptorFile\nversion=1\n"), "vmdk"},
		"x.vdi":          {at(0x40, "\x7f\x10\xda\xbe"), "vdi"},
		"x.vhdx":         {at(0, "vhdxfile"), "vhdx"},
		"dynamic.vhd":    {at(0, "conectix"), "vpc"},
		"fixed.vhd":      {at(1<<16-512, "conectix"), "vpc"},
		"x.qed":          {at(0, "QED\x00"), "qed"},
		"x.qcow":         {at(0, "QFI\xfb\x00\x00\x00\x01"), "qcow"},
		"x.hds":          {at(0, "WithoutFreeSpace"), "parallels"},
		"x.hdd":          {at(0, "WithouFreSpacExt"), "parallels"},
		"x.dmg":          {at(1<<16-512, "koly"), "dmg"},
		"called raw.img": {at(0, "KDMV"), "vmdk"},
		"empty.vmdk":     {nil, ""},
		"short.vmdk":     {[]byte("KDM"), ""},
		"mbr.img":        {at(510, "\x55\xaa"), ""},
		"inside.img":     {at(512, "KDMV"), ""},
		"inside 2.img":   {at(1<<16-1024, "conectix"), ""},
	} {
		path := filepath.Join(dir, name)
		os.WriteFile(path, c.content, 0o644)
		img, err := Open(path, Options{ReadOnly: true})
		var foreign *ForeignFormatError
		switch {
		case c.want == "" && err != nil, c.want != "" && !errors.As(err, &foreign):
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (foreign.Format != c.want || !strings.Contains(err.Error(), "qemu-img convert -f "+c.want+" -O qcow2 ")):
			t.Errorf("%s: %v, want the format %s", name, err, c.want)
		}
		if err == nil {
			img.Close()
		}
		img, err = Open(path, Options{ReadOnly: true, Format: Raw})
		if err != nil {
			t.Fatalf("%s as a raw disk: %v", name, err)
		}
		img.Close()
		if c.want == "" {
			continue
		}
		over := path + ".qcow2"
		if err := Create(over, CreateOptions{Backing: name}); !errors.As(err, &foreign) {
			t.Errorf("an image over %s: %v", name, err)
		}
		if err := Create(over, CreateOptions{Backing: name, BackingFormat: c.want, Size: 1 << 16}); !errors.As(err, &foreign) {
			t.Errorf("an image over %s, with its format: %v", name, err)
		}
	}
	if roots, err := Tree(dir); err != nil || len(roots) != 13+3 { // foreign ones, and raw ones called .img
		t.Errorf("the tree has %d images, %v", len(roots), err)
	}
}

// TestForeignFiles has qemu-img make such images, and follows the advice.
func TestForeignFiles(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip(err)
	}
	for _, args := range []string{"vmdk", "vmdk -o subformat=streamOptimized", "vmdk -o subformat=monolithicFlat", "vmdk -o subformat=twoGbMaxExtentSparse",
		"vdi", "vdi -o static=on", "vhdx", "vhdx -o subformat=fixed", "vpc", "vpc -o subformat=fixed", "qed", "qcow", "parallels"} {
		path := filepath.Join(t.TempDir(), "it's a disk")
		words := append(append([]string{"create", "-q", "-f"}, strings.Fields(args)...), path, "64M")
		if out, err := exec.Command("qemu-img", words...).CombinedOutput(); err != nil {
			t.Logf("%s: %s", args, out)
			continue
		}
		_, err := Open(path, Options{ReadOnly: true})
		_, line, ok := strings.Cut(errorText(err), "with qemu-img ")
		if !ok {
			t.Errorf("%s: %v", args, err)
			continue
		}
		if out, err := exec.Command("sh", "-c", "qemu-img "+line).CombinedOutput(); err != nil {
			t.Errorf("qemu-img %s: %v, %s", line, err, out)
		}
		img, err := Open(path+".qcow2", Options{})
		if err != nil || img.Size() < 64<<20 {
			t.Errorf("%s: %v", args, err)
			continue
		}
		img.Close()
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestShellWord: the advice can be pasted, whatever an image is called.
func TestShellWord(t *testing.T) {
	for _, name := range []string{"a.vmdk", "a b", "it's", "$(touch x)", "a\nb", "x;y", "~"} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellWord(name)).Output()
		if err != nil || string(out) != name {
			t.Errorf("%q becomes %q, %v", name, out, err)
		}
	}
	if got := shellWord("-x"); got != "'./-x'" {
		t.Errorf("what begins like an option is %s", got)
	}
}

// TestParseBacking reads QEMU's descriptions of backing files.
func TestParseBacking(t *testing.T) {
	for text, want := range map[string]backing{
		`{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}`:  {"base.qcow2", Qcow2},
		`{"driver":"raw","file":{"driver":"file","filename":"/a/base"}}`:       {"/a/base", Raw},
		`{"driver":"raw","file":{"driver":"host_device","filename":"/dev/x"}}`: {"/dev/x", Raw},
		`{"driver":"file","filename":"base"}`:                                  {"base", ""},
		`{"filename":"base"}`:                                                  {"base", ""},
		`{"file":{"filename":"base"}}`:                                         {"base", ""},
		`{"file.filename":"base","driver":"qcow2"}`:                            {"base", Qcow2},
		`{"driver":"qcow2","file.driver":"file","file":{"filename":"base"}}`:   {"base", Qcow2},
		`{"driver":"qcow2","lazy-refcounts":true,"cache":{"direct":false},"file":{"filename":"b","locking":"off","cache.no-flush":true}}`: {"b", Qcow2},
	} {
		if got, err := parseBacking([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		`{`: "unexpected end", `[]`: "cannot unmarshal", `{}`: "names no file", `{"driver":"qcow2"}`: "names no file",
		`{"driver":"nbd","host":"x"}`:                                                       "only files are possible",
		`{"driver":"qcow2","file":{"driver":"https","filename":"x"}}`:                       "file.driver=https",
		`{"driver":"qcow2","file":{"driver":"nbd","host":"x"}}`:                             "is not understood",
		`{"driver":"raw","offset":512,"file":{"filename":"x"}}`:                             "offset=512",
		`{"driver":"raw","size":1048576,"file":{"filename":"x"}}`:                           "size=1048576",
		`{"driver":"qcow2","backing":null,"file":{"filename":"x"}}`:                         "backing=null",
		`{"driver":"qcow2","backing":{"driver":"file","filename":"y"},"file.filename":"x"}`: "is not understood",
		`{"driver":"qcow2","data-file":"y","file.filename":"x"}`:                            "data-file",
		`{"driver":"vmdk","file.filename":"x"}`:                                             `the driver "vmdk"`,
		`{"file.filename":"x","file":{"filename":"y"}}`:                                     "twice",
		`{"file":["x"]}`: "neither", `{"file":"node"}`: "is not understood",
	} {
		if got, err := parseBacking([]byte(text)); !strings.Contains(errorText(err), want) {
			t.Errorf("%s: %+v, %v, want %q", text, got, err, want)
		}
	}
}

// FuzzBacking reads any description.
func FuzzBacking(f *testing.F) {
	f.Add([]byte(`{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}`))
	f.Add([]byte(`{"driver":"raw","file.filename":"x","cache":{"direct":true}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if b, err := parseBacking(text); err == nil && (b.path == "" || b.format != "" && b.format != Raw && b.format != Qcow2) {
			t.Errorf("%q is %+v", text, b)
		}
	})
}

// TestJSONBacking opens images whose backing files are so described.
func TestJSONBacking(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	os.WriteFile(at("base.raw"), []byte(strings.Repeat("x", 4096)), 0o644)
	if err := Create(at("base.qcow2"), CreateOptions{Backing: "base.raw", BackingFormat: Raw}); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, make([]byte, 4096), 0o644)
	for i, c := range []struct {
		backing string
		depth   int
		err     error
	}{
		{`json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}`, 3, nil},
		{`json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}`, 2, nil},
		{`json:{"driver":"file","filename":"` + at("base.raw") + `"}`, 2, nil},
		{`json:{"driver":"raw","file":{"driver":"file","filename":"` + secret + `"}}`, 2, ErrForeignBacking},
	} {
		path := at("over" + string(rune('0'+i)))
		if err := Create(path, CreateOptions{Backing: c.backing}); err != nil {
			t.Errorf("%s: %v", c.backing, err)
			continue
		}
		img, err := Open(path, Options{})
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.backing, err, c.err)
		}
		if err != nil {
			continue
		}
		b := make([]byte, 512)
		if err := img.ReadV([][]byte{b}, 512); err != nil || b[0] != 'x' || len(img.Chain()) != c.depth {
			t.Errorf("%s: %q, %d images, %v", c.backing, b[:1], len(img.Chain()), err)
		}
		if err := img.Rebase(c.backing, "", nil); err != nil {
			t.Errorf("rebased to %s: %v", c.backing, err)
		}
		img.Close()
	}
	roots, err := Tree(dir)
	if err != nil || len(roots) != 2 || len(roots[0].Overlays) != 3 || len(roots[0].Overlays[0].Overlays) != 1 {
		t.Errorf("the tree: %+v, %v", roots, err)
	}
}

// TestNewFormat: what is made is what its name says, or it is refused.
func TestNewFormat(t *testing.T) {
	for _, c := range []struct{ name, given, want string }{
		{"a.qcow2", "", Qcow2}, {"a", "", Qcow2}, {"a.img", "", Qcow2}, {"a.raw", "", Raw}, {"a.RAW", "", Raw}, {"a.raw", Qcow2, Qcow2},
		{"a.vmdk", "", ""}, {"a.VHDX", "", ""}, {"a.vmdk", Raw, Raw}, {"a.qcow2", "vmdk", ""}, {"a", "x", ""},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		err := Create(path, CreateOptions{Format: c.given, Size: 1 << 16})
		if (err == nil) != (c.want != "") {
			t.Errorf("%s %s: %v", c.name, c.given, err)
		}
		if n := describe(path); c.want == "" && !errors.Is(lstat(path), fs.ErrNotExist) || c.want == Qcow2 && n.Format != Qcow2 {
			t.Errorf("%s %s: %+v", c.name, c.given, n)
		}
	}
}

func lstat(path string) error { _, err := os.Lstat(path); return err }

// TestTreeOfImage: an image by itself is shown with what it is over.
func TestTreeOfImage(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(Create(at("base"), CreateOptions{Size: 1 << 16}), Create(at("over"), CreateOptions{Backing: "base"}), Create(at("other"), CreateOptions{Backing: "base"})); err != nil {
		t.Fatal(err)
	}
	roots, err := Tree(at("over"))
	if err != nil || len(roots) != 1 || roots[0].Path != at("base") || len(roots[0].Overlays) != 1 {
		t.Errorf("%+v, %v", roots, err)
	}
	os.WriteFile(at("text"), []byte("hello"), 0o644)
	for _, name := range []string{"text", "nowhere"} {
		if roots, err := Tree(at(name)); err == nil {
			t.Errorf("%s: %+v", name, roots)
		}
	}
}

// TestLoops: images that are their own backing files are named, and seen in the tree.
func TestLoops(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	link := func(name, backing string) { // a backing file that does not fit yet
		if err := Create(at(name), CreateOptions{Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		img, err := Open(at(name), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(img.Qcow2.SetBackingFile(backing, Qcow2), img.Close()); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink(".", at("same"))
	link("self", "self")
	link("selflink", "same/selflink")
	link("a", "b")
	link("b", "c")
	link("c", "a")
	link("over", "a")
	link("out", filepath.Join(outside, "out2"))
	link(filepath.Join("..", filepath.Base(outside), "out2"), at("out"))
	link("good", "")
	for name, want := range map[string][]string{"self": {"self"}, "selflink": {"selflink"}, "a": {"a", "b", "c"}, "b": {"b", "c", "a"}, "over": {"a", "b", "c"}} {
		for _, readOnly := range []bool{true, false} {
			_, err := Open(at(name), Options{ReadOnly: readOnly})
			var loop *LoopError
			if !errors.As(err, &loop) || len(loop.Paths) != len(want) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for i, p := range loop.Paths {
				if filepath.Base(p) != want[i] {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	if f, err := storage.OpenFile(at("a"), false, ""); err != nil {
		t.Errorf("it is still locked: %v", err)
	} else {
		f.Close()
	}
	roots, err := Tree(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	var walk func(list []*Node)
	walk = func(list []*Node) {
		for _, n := range list {
			seen[filepath.Base(n.Path)]++
			walk(n.Overlays)
		}
	}
	walk(roots)
	loops := 0
	for _, n := range roots {
		if strings.Contains(n.Error, "a loop of backing files: ") {
			loops++
		}
	}
	if len(seen) != 9 || loops != 4 {
		t.Errorf("the tree has %d loops, and %v", loops, seen)
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s is there %d times", name, n)
		}
	}
}
