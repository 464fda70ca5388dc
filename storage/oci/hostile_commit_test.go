package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmm/internal/tarfile"
)

// TestHostileCommit commits layers of a guest whose agent is another one. What is no layer is an error of one short line,
// after which the store is as before; what is one shows in the image, and nothing outside of the store is written.
func TestHostileCommit(t *testing.T) {
	entries := func(list ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range list {
			h.Format, h.Mode = tar.FormatPAX, 0o644
			if h.Typeflag == 0 {
				h.Typeflag = tar.TypeReg
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 1<<20 {
				return b.Bytes() // so much is said, and does not come
			}
			io.CopyN(w, zeros{}, h.Size)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	attribute := func(name, value string) tar.Header {
		return tar.Header{Name: "x", PAXRecords: map[string]string{tarfile.XattrRecord + name: value}}
	}
	symlink := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	hard := func(name, to string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to} }
	device := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 1}
	}
	sparse := func(size string) []byte {
		return pax(map[string]string{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": size}, append([]byte("1\n"+size+"\n0\n"), make([]byte, 512)...))
	}
	old := []string{"d/", "d/f = 1", "root -> /", "up -> ../../../../.."}
	with := func(more ...string) []string { return slices.Sorted(slices.Values(append(more, old...))) }
	long := strings.Repeat("n", 200)
	for name, c := range map[string]struct {
		archive []byte
		tree    []string // nil if it is refused
		limit   bool     // for ErrLimit
	}{
		"above":                      {archive: entries(tar.Header{Name: "../x"})},
		"above by a directory":       {archive: entries(tar.Header{Name: "d/../../x"})},
		"above by a whiteout":        {archive: entries(tar.Header{Name: "../.wh.x"})},
		"absolute":                   {archive: entries(tar.Header{Name: "/x"}), tree: with("x = ")},
		"below a link to the root":   {archive: entries(tar.Header{Name: "root/x"}), tree: with("x = ")},
		"below a link above":         {archive: entries(tar.Header{Name: "up/x"}), tree: with("x = ")},
		"below a link of its own":    {archive: entries(symlink("l", "/etc/../.."), tar.Header{Name: "l/d/x"}), tree: with("d/x = ", "etc/", "l -> /etc/../..")},
		"below a loop":               {archive: entries(symlink("a", "b"), symlink("b", "a"), tar.Header{Name: "a/x"})},
		"a link to the host's":       {archive: entries(hard("x", "/etc/passwd"))},
		"a link above":               {archive: entries(hard("x", "../../../etc/passwd"))},
		"a link through a link":      {archive: entries(hard("x", "up/etc/passwd"))},
		"a link to itself":           {archive: entries(hard("x", "x"))},
		"a huge file":                {archive: entries(tar.Header{Name: "x", Size: 1 << 62}), limit: true},
		"a huge hole":                {archive: sparse("4611686018427387904"), limit: true},
		"a file that ends early":     {archive: entries(tar.Header{Name: "x", Size: 2 << 20})},
		"a size below nothing":       {archive: pax(map[string]string{"size": "-5"}, nil)},
		"devices":                    {archive: entries(device("x"), device("y")), tree: with("x", "y")},
		"a name many times":          {archive: entries(tar.Header{Name: "x"}, tar.Header{Name: "x", Typeflag: tar.TypeDir}, symlink("x", "a"), tar.Header{Name: "x", Size: 2}), tree: with("x = \x00\x00")},
		"a directory over a file":    {archive: entries(tar.Header{Name: "d/f/x"})},
		"a file over a directory":    {archive: entries(tar.Header{Name: "d"}), tree: []string{"d = ", "root -> /", "up -> ../../../../.."}},
		"no UTF-8":                   {archive: entries(tar.Header{Name: "\xff\xfe"}), tree: with("\xff\xfe = ")},
		"a name with a line's end":   {archive: entries(tar.Header{Name: "../\n\x1b[31mvmm: all is well"})},
		"a name too long":            {archive: entries(tar.Header{Name: long + long})},
		"a path too long":            {archive: entries(tar.Header{Name: strings.Repeat(long+"/", 30) + "x"}), limit: true},
		"a name of a mebibyte":       {archive: pax(map[string]string{"path": strings.Repeat("n", 900<<10)}, nil), limit: true},
		"records of many mebibytes":  {archive: pax(map[string]string{"path": strings.Repeat("n", 5<<20)}, nil)},
		"a huge attribute":           {archive: entries(attribute("user.x", strings.Repeat("v", 70<<10))), tree: with("x = ")},
		"an attribute of the host's": {archive: entries(attribute("trusted.overlay.opaque", "y")), tree: with("x = ")},
		"an attribute without name":  {archive: entries(attribute("", "v")), tree: with("x = ")},
		"an attribute's broken name": {archive: pax(map[string]string{"path": "x", tarfile.XattrRecord + "a\x00b": "v"}, nil)},
		"more attributes than fit":   {archive: pax(attributes(10, 60<<10), nil)},
		"many attributes":            {archive: pax(attributes(20000, 10), nil)},
		"whiteouts of everything":    {archive: entries(tar.Header{Name: ".wh..wh..opq"}, tar.Header{Name: ".wh."}, tar.Header{Name: ".wh..."}, tar.Header{Name: ".wh.d"}, tar.Header{Name: "x"}), tree: []string{"x = "}},
		"a whiteout of the root":     {archive: entries(tar.Header{Name: "/.wh..", Typeflag: tar.TypeDir}), tree: with()},
		"bytes that are no archive":  {archive: bytes.Repeat([]byte("no archive\n"), 1000)},
		"a header that is cut off":   {archive: entries(tar.Header{Name: "x"})[:700]},
	} {
		t.Run(name, func(t *testing.T) {
			s, ctx := newStore(t, Limits{Bytes: 1 << 30, Entries: 1000, Names: 8 << 20}), t.Context()
			around := filepath.Dir(s.dir)
			if err := os.WriteFile(filepath.Join(around, "x"), []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			base, err := s.add(ctx, memory{Image: imageOf(t, layerOf(t, text("d/f", "1"), file{name: "root", kind: tar.TypeSymlink, target: "/"}, file{name: "up", kind: tar.TypeSymlink, target: "../../../../.."}))}, "docker.io/library/base:1", nil)
			if err != nil {
				t.Fatal(err)
			}
			before := contentsOf(t, s.dir)
			made, err := s.Commit(ctx, base, Commit{Name: "made"}, func(w io.Writer) error {
				_, err := w.Write(c.archive)
				return err
			})
			if (c.tree == nil) != (err != nil) || c.limit && !errors.Is(err, ErrLimit) {
				t.Fatalf("%.300v", err)
			}
			if err != nil {
				if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 1000 {
					t.Errorf("%d bytes: %.1000q", len(err.Error()), err)
				}
				if after := contentsOf(t, s.dir); !slices.Equal(before, after) {
					t.Errorf("%q before, %q after", before, after)
				}
			} else if got := slices.Sorted(slices.Values(tree(t, fileSystem(t, made)))); !slices.Equal(got, c.tree) {
				t.Errorf("%q, want %q", got, c.tree)
			}
			if b, err := os.ReadFile(filepath.Join(around, "x")); err != nil || string(b) != "mine" {
				t.Errorf("beside the store: %q, %v", b, err)
			}
			if beside, err := fs.Glob(os.DirFS(around), "*"); err != nil || !slices.Equal(beside, []string{"images", "x"}) {
				t.Errorf("beside the store: %q, %v", beside, err)
			}
		})
	}
}

// attributes are the records of a file with many extended attributes.
func attributes(n, size int) map[string]string {
	out := map[string]string{"path": "x"}
	for i := range n {
		out[fmt.Sprint(tarfile.XattrRecord, "user.", i)] = strings.Repeat("v", size)
	}
	return out
}

// pax is the archive of a file with records as they are given, right or wrong (POSIX, pax, "pax Extended Header").
func pax(records map[string]string, body []byte) []byte {
	var list []byte
	for key, value := range records {
		rest := " " + key + "=" + value + "\n"
		n := len(rest)
		for len(fmt.Sprint(n))+len(rest) != n {
			n = len(fmt.Sprint(n)) + len(rest)
		}
		list = append(list, fmt.Sprint(n, rest)...)
	}
	return slices.Concat(block(tar.TypeXHeader, list), block(tar.TypeReg, body), make([]byte, 1024))
}

// block is a header without a name, and what follows it (POSIX, pax, "ustar Interchange Format").
func block(kind byte, body []byte) []byte {
	h := make([]byte, 512)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        %c", len(body), kind))
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return slices.Concat(h, body, make([]byte, -len(body)&511))
}
