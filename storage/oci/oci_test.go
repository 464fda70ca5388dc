package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	oracle "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"vmm/internal/tarfile"
	"vmm/storage"
	"vmm/storage/erofs"
)

// file is a file of a test's layer; its kind is told by what is set.
type file struct {
	name   string
	body   string // of a regular file
	target string // of a symbolic link
	link   string // of another name
	kind   byte   // where that does not tell
	mode   int64
	xattr  string
}

func dirs(name string) file        { return file{name: name, kind: tar.TypeDir, mode: 0o755} }
func link(name, to string) file    { return file{name: name, kind: tar.TypeLink, link: to} }
func symlink(name, to string) file { return file{name: name, kind: tar.TypeSymlink, target: to} }
func text(name, body string) file  { return file{name: name, body: body} }

// archiveOf makes the archive of a layer.
func archiveOf(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Format: tar.FormatPAX, Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.body)), Linkname: f.target + f.link, Uid: 1, Gid: 2}
		if f.kind != 0 {
			h.Typeflag = f.kind
		}
		if f.mode != 0 {
			h.Mode = f.mode
		}
		if f.xattr != "" {
			h.PAXRecords = map[string]string{tarfile.XattrRecord + "user.x": f.xattr}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf makes a layer, compressed.
func layerOf(t *testing.T, files ...file) v1.Layer {
	t.Helper()
	return packed(t, archiveOf(t, files...))
}

func packed(t *testing.T, archive []byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(archive)
	w.Close()
	return &knownLayer{static.NewLayer(b.Bytes(), types.OCILayer), digestOf(archive)}
}

// knownLayer is a layer with a digest of its archive, right or wrong.
type knownLayer struct {
	v1.Layer
	diffID v1.Hash
}

// DiffID implements v1.Layer.
func (l *knownLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// imageOf makes an image.
func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = platform.OS, platform.Architecture, v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"A=b"}}
	if image, err = mutate.ConfigFile(image, c); err != nil {
		t.Fatal(err)
	}
	return image
}

func newStore(t *testing.T, limits Limits) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"), limits)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fileSystem reads an image by another implementation.
func fileSystem(t *testing.T, i *Image) fs.FS {
	t.Helper()
	segments, err := i.Segments()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := storage.OpenConcat(erofs.SegmentAlign, segments...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	img, err := oracle.Open(storage.ReaderAt{Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// tree lists a file system: a line a file.
func tree(t *testing.T, img fs.FS) []string {
	t.Helper()
	var out []string
	inodes := map[int64]string{}
	err := fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*oracle.Stat)
		line := path
		switch {
		case inodes[st.Ino] != "":
			out = append(out, path+" == "+inodes[st.Ino])
			return nil
		case d.IsDir():
			line += "/"
		case d.Type() == fs.ModeSymlink:
			target, err := fs.ReadLink(img, path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case d.Type().IsRegular():
			b, err := fs.ReadFile(img, path)
			if err != nil {
				return err
			}
			line += " = " + string(b)
		}
		inodes[st.Ino] = path
		if len(st.Xattrs) > 0 {
			line += " " + strings.Join(slices.Sorted(maps.Values(st.Xattrs)), " ")
		}
		if p := info.Mode().Perm(); p != 0o644 && p != 0o755 && p != 0o777 {
			line += fmt.Sprintf(" %o", p)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLayers puts layers upon each other.
func TestLayers(t *testing.T) {
	big := strings.Repeat("b", 3*blocksBuffer/2)
	for name, c := range map[string]struct {
		layers [][]file
		want   []string
	}{
		"one": {[][]file{{dirs("etc/"), text("etc/a", "1"), symlink("l", "etc/a"), link("etc/b", "etc/a")}},
			[]string{"etc/", "etc/a = 1", "etc/b == etc/a", "l -> etc/a"}},
		"no layers":       {nil, nil},
		"names":           {[][]file{{text("./a//b", "1"), text("/c", "2"), dirs("./")}}, []string{"a/", "a/b = 1", "c = 2"}},
		"replaced":        {[][]file{{text("a", "1"), dirs("d"), text("d/x", "1")}, {text("a", "2"), text("d", "2")}}, []string{"a = 2", "d = 2"}},
		"by a dir":        {[][]file{{text("a", "1")}, {dirs("a"), text("a/b", "2")}}, []string{"a/", "a/b = 2"}},
		"dir kept":        {[][]file{{dirs("d"), text("d/x", "1")}, {{name: "d", kind: tar.TypeDir, mode: 0o700, xattr: "new"}}}, []string{"d/ new 700", "d/x = 1"}},
		"whiteout":        {[][]file{{text("a", "1"), dirs("d"), text("d/x", "1")}, {text(".wh.a", ""), text(".wh.d", "")}}, nil},
		"not own":         {[][]file{{text("a", "1")}, {text("a", "2"), text(".wh.a", "")}, {text(".wh.a", ""), text("a", "3")}}, []string{"a = 3"}},
		"of nothing":      {[][]file{{text(".wh.a", ""), text("x/.wh.b", ""), text("x/.wh..wh..opq", "")}}, nil},
		"of below a file": {[][]file{{text("a", "1")}, {text("a/.wh.b", ""), text("a/c/.wh..wh..opq", "")}}, []string{"a = 1"}},
		"dir renewed":     {[][]file{{dirs("d"), text("d/old", "1")}, {dirs("d"), text("d/new", "2"), text(".wh.d", "")}}, []string{"d/", "d/new = 2"}},
		"opaque":          {[][]file{{dirs("d/e"), text("d/e/old", "1"), text("d/old", "1")}, {text("d/new", "2"), dirs("d/e"), text("d/.wh..wh..opq", "")}}, []string{"d/", "d/e/", "d/new = 2"}},
		"overlay's": {[][]file{{text("a", "1"), text("b", "1"), dirs("d"), text("d/c", "1")}, {{name: "a", kind: tar.TypeChar}, link("l", "a"), {name: "d/c", kind: tar.TypeChar}, {name: "d/k", kind: tar.TypeBlock}},
			{text("d/new", "1")}}, []string{"b = 1", "d/", "d/k", "d/new = 1"}},
		"aufs":          {[][]file{{text(".wh..wh.plnk/1.2", "x"), text(".wh..wh.aufs", "")}}, nil},
		"through links": {[][]file{{dirs("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr")}, {text("lib/a", "1"), text("abs/lib/b", "2")}}, []string{"abs -> /usr", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/a = 1", "usr/lib/b = 2"}},
		"never out":     {[][]file{{symlink("up", "../../../etc"), text("up/a", "1")}}, []string{"etc/", "etc/a = 1", "up -> ../../../etc"}},
		"link across":   {[][]file{{text("a", "1")}, {link("b", "a"), text(".wh.a", "")}}, []string{"b = 1"}},
		"contents":      {[][]file{{text("a", big), text("b", "2"), text("e", "")}, {text("c", big+"c"), text("z", strings.Repeat("\x00", 20000))}}, []string{"a = " + big, "b = 2", "c = " + big + "c", "e = ", "z = " + strings.Repeat("\x00", 20000)}},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []v1.Layer
			for _, files := range c.layers {
				layers = append(layers, layerOf(t, files...))
			}
			s := newStore(t, Limits{})
			image, err := s.add(t.Context(), memory{Image: imageOf(t, layers...)}, "docker.io/library/x:latest", nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := tree(t, fileSystem(t, image)); !slices.Equal(got, c.want) {
				t.Errorf("%.300q, not %.300q", got, c.want)
			}
		})
	}
}

// TestUndescribed: a directory that no layer has is of the beginning of time as Unix has it.
func TestUndescribed(t *testing.T) {
	s := newStore(t, Limits{})
	image, err := s.add(t.Context(), memory{Image: imageOf(t, layerOf(t, text("a/b", "")))}, "docker.io/library/x:latest", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{".", "a"} {
		info, err := fs.Stat(fileSystem(t, image), dir)
		if err != nil || !info.ModTime().Equal(time.Unix(0, 0)) {
			t.Errorf("%s: of %v, %v", dir, info.ModTime(), err)
		}
	}
}

// TestHostile gives the store layers that would harm it.
func TestHostile(t *testing.T) {
	many := make([]file, 200)
	for i := range many {
		many[i] = text(fmt.Sprint(i), "")
	}
	long := make([]file, 90)
	for i := range long {
		long[i] = symlink(fmt.Sprint(i), strings.Repeat("l", 4000))
	}
	deep := strings.Repeat("d/", 2000)
	limits := Limits{Bytes: 1 << 20, Entries: 100, Names: 100 << 10}
	for name, c := range map[string]struct {
		files []file
		want  error // nil for any
	}{
		"above":          {[]file{text("../x", "")}, errOutside},
		"above, later":   {[]file{text("a/../../x", "")}, errOutside},
		"link above":     {[]file{link("a", "../../etc/passwd")}, errOutside},
		"link to none":   {[]file{link("a", "b")}, fs.ErrNotExist},
		"link to a dir":  {[]file{dirs("d"), link("a", "d")}, nil},
		"loop":           {[]file{symlink("a", "b"), symlink("b", "a"), text("a/x", "")}, nil},
		"below a file":   {[]file{text("a", ""), text("a/b", "")}, nil},
		"empty link":     {[]file{symlink("a", "")}, nil},
		"many files":     {many, ErrLimit},
		"deep":           {[]file{text(deep+"x", "")}, ErrLimit},
		"deep by a link": {[]file{symlink("l", deep), text("l/x", "")}, ErrLimit},
		"long name":      {[]file{text(strings.Repeat("n", 300), "")}, nil},
		"long path":      {[]file{text(strings.Repeat("n/", 3000)+"x", "")}, ErrLimit},
		"long links":     {long, ErrLimit},
		"long xattrs":    {[]file{{name: "a", xattr: noise(60 << 10)}, {name: "b", xattr: noise(60 << 10)}}, ErrLimit},
		"large file":     {[]file{text("a", strings.Repeat("\x00", 2<<20))}, ErrLimit},
		"large in all":   {[]file{text("a", strings.Repeat("\x00", 600<<10)), text("b", strings.Repeat("\x00", 600<<10))}, ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, limits, imageOf(t, layerOf(t, c.files...)), c.want)
		})
	}
	good := layerOf(t, text("a", "1"))
	other := archiveOf(t, text("a", "2"))
	for name, layer := range map[string]v1.Layer{
		"another archive": &knownLayer{good, digestOf(other)},
		"no archive":      packed(t, []byte(strings.Repeat("no archive ", 100))),
		"cut off":         packed(t, other[:512]),
		"bomb":            packed(t, append(other, make([]byte, 2<<20)...)),
	} {
		t.Run(name, func(t *testing.T) { refused(t, limits, imageOf(t, layer), nil) })
	}
	t.Run("another blob", func(t *testing.T) {
		refusedFrom(t, limits, memory{imageOf(t, good), other}, nil)
	})
	t.Run("other machine", func(t *testing.T) {
		c, _ := imageOf(t, good).ConfigFile()
		c.Architecture = "s390x"
		image, err := mutate.ConfigFile(imageOf(t, good), c)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, limits, image, nil)
	})
	t.Run("more layers", func(t *testing.T) {
		c, _ := imageOf(t, good).ConfigFile()
		c.RootFS.DiffIDs = nil
		image, err := mutate.ConfigFile(imageOf(t, good), c)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, limits, image, nil)
	})
}

// refused takes an image that the store must not have, and sees that nothing is left of it.
func refused(t *testing.T, limits Limits, image v1.Image, want error) {
	t.Helper()
	refusedFrom(t, limits, memory{Image: image}, want)
}

func refusedFrom(t *testing.T, limits Limits, from source, want error) {
	t.Helper()
	s := newStore(t, limits)
	_, err := s.add(t.Context(), from, "docker.io/library/x:latest", nil)
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Fatalf("%v, not %v", err, want)
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 5000 {
		t.Errorf("%d bytes: %.200q", len(err.Error()), err)
	}
	if _, err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := contentsOf(t, s.dir); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// contentsOf are the files of a store but for those that it always has.
func contentsOf(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch d.Name() {
		case usersLock, indexLock, "oci-layout", "index.json":
		default:
			if !d.IsDir() {
				out = append(out, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestManyWhiteouts: what hides everything, said as often as there are files, takes no longer
// than once.
func TestManyWhiteouts(t *testing.T) {
	const n = 1000
	deep := strings.Repeat("a/", 100)
	var marks, levels []file
	for i := range n {
		marks = append(marks, text(fmt.Sprint("d/", i), ""))
		levels = append(levels, text(fmt.Sprint(deep, i), ""))
	}
	for range n {
		marks = append(marks, text("d/.wh..wh..opq", ""), text(".wh.d", ""))
	}
	for i := range 100 {
		levels = append(levels, text(strings.Repeat("a/", i)+".wh.a", ""))
	}
	for name, files := range map[string][]file{"of one directory": marks, "at each level": levels} {
		dir := t.TempDir()
		if err := unpackLayer(bytes.NewReader(archiveOf(t, files...)), dir, DefaultLimits); err != nil {
			t.Fatal(err)
		}
		m := newMerger(DefaultLimits)
		if err := m.layer(dir, 0); err != nil {
			t.Fatal(err)
		}
		if m.steps > 200*n {
			t.Errorf("%s: %d steps", name, m.steps)
		}
	}
}

// FuzzLayer unpacks and merges anything.
func FuzzLayer(f *testing.F) {
	t := &testing.T{}
	f.Add(archiveOf(t, dirs("d"), text("d/a", "1"), symlink("l", "d"), link("l/b", "d/a"), text("l/.wh.a", "")))
	f.Add(archiveOf(t, text("d/.wh..wh..opq", ""), symlink("a", "b/../.."), text("a/c", "x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		limits := Limits{Bytes: 1 << 20, Entries: 1000, Names: 1 << 20}
		dir := t.TempDir()
		if unpackLayer(bytes.NewReader(b), dir, limits) != nil {
			return
		}
		m := newMerger(limits)
		if m.layer(dir, 0) != nil {
			return
		}
		if m.entries > limits.Entries || m.steps > limits.Entries*stepsPerEntry+math.MaxInt16 {
			t.Errorf("%d entries, %d steps", m.entries, m.steps)
		}
	})
}
