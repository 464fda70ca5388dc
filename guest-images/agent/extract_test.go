package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmm/internal/paths"
)

// tarOf is an archive of these entries; what has no type is a file of its name's length.
func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Mode = 0o6755; h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, h.Name)
		}
	}
	w.Close()
	return b.Bytes()
}

// hostile is an agent that sends an archive whatever it is asked for.
func hostile(t *testing.T, archive []byte) *Client {
	return &Client{Dial: func(context.Context) (net.Conn, error) {
		a, b := pair(t)
		go func() {
			defer b.Close()
			l := NewLink(b)
			var r Request
			l.ReceiveJSON(FrameRequest, &r)
			io.Copy(writer{l, FrameStdout}, bytes.NewReader(archive))
			l.Send(FrameStdout, nil)
			l.SendJSON(FrameReply, Reply{})
			l.Receive()
		}()
		return a, nil
	}}
}

// TestHostileGet: a guest's answer changes nothing but what was asked for.
func TestHostileGet(t *testing.T) {
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	hard := func(name, to string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to} }
	file := func(name string) tar.Header { return tar.Header{Name: name} }
	for name, c := range map[string]struct {
		from    string // /x if empty
		entries []tar.Header
		refused bool
		made    string // below the destination
	}{
		"the file":              {entries: []tar.Header{file("x")}, made: "x"},
		"a directory":           {entries: []tar.Header{dir("x"), dir("x/d/"), file("x/d/f"), link("x/l", "/etc"), hard("x/h", "x/d/f")}, made: "x/h"},
		"another name":          {entries: []tar.Header{file(".bashrc")}, refused: true},
		"a name like it":        {entries: []tar.Header{file("xy")}, refused: true},
		"another directory":     {entries: []tar.Header{file(".ssh/keys")}, refused: true},
		"after the right one":   {entries: []tar.Header{file("x"), file(".ssh/keys")}, refused: true, made: "x"},
		"absolute":              {entries: []tar.Header{file("/x")}, refused: true},
		"above":                 {entries: []tar.Header{file("../x")}, refused: true},
		"above and back":        {entries: []tar.Header{dir("x"), file("x/../.ssh/keys")}, refused: true},
		"above by the end":      {entries: []tar.Header{file("x/..")}, refused: true},
		"through a link":        {entries: []tar.Header{dir("x"), link("x/l", "../.ssh"), file("x/l/keys")}, refused: true},
		"through a link's link": {entries: []tar.Header{dir("x"), link("x/l", "../.ssh"), dir("x/l/deep")}, refused: true},
		"a link as directory":   {entries: []tar.Header{link("x", ".ssh"), dir("x")}, refused: true},
		"the link itself":       {entries: []tar.Header{link("x", ".ssh"), file("x/keys")}, refused: true},
		"a link, then a file":   {entries: []tar.Header{link("x", "victim"), file("x"), file("x")}, made: "x"},
		"what is in it first":   {entries: []tar.Header{file("x/f"), dir("x")}, refused: true},
		"nothing":               {made: "."},
		"a link replaced":       {entries: []tar.Header{link("x", "victim"), file("x")}, made: "x"},
		"a hard link out":       {entries: []tar.Header{hard("x", "victim")}, refused: true},
		"a hard link by a link": {entries: []tar.Header{dir("x"), link("x/l", "../.ssh"), hard("x/h", "x/l/old")}, refused: true},
		"a hard link absolute":  {entries: []tar.Header{hard("x", "/etc/passwd")}, refused: true},
		"a device":              {entries: []tar.Header{{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, refused: true},
		"a device in it":        {entries: []tar.Header{dir("x"), {Name: "x/d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, made: "x"},
		"all of it":             {from: "/", entries: []tar.Header{file("/x")}, refused: true},
		"up":                    {from: "..", entries: []tar.Header{file("../x")}, refused: true},
	} {
		home := t.TempDir()
		os.Mkdir(filepath.Join(home, ".ssh"), 0o700)
		for _, f := range []string{"victim", ".ssh/old", ".bashrc"} {
			os.WriteFile(filepath.Join(home, f), []byte("mine"), 0o600)
		}
		from := c.from
		if from == "" {
			from = "/x"
		}
		err := hostile(t, tarOf(t, c.entries...)).Get(t.Context(), from, home, GetOptions{})
		if c.refused != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
		filepath.WalkDir(home, func(p string, _ os.DirEntry, err error) error {
			rel, _ := filepath.Rel(home, p)
			st, bad := os.Lstat(p)
			if rel != "x" && !strings.HasPrefix(rel, "x/") && rel != "." && rel != ".ssh" && rel != ".ssh/old" && rel != "victim" && rel != ".bashrc" {
				t.Errorf("%s: %s is there", name, rel)
			}
			if bad == nil && st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
				t.Errorf("%s: %s has mode %v", name, rel, st.Mode())
			}
			return err
		})
		for _, f := range []string{"victim", ".ssh/old", ".bashrc"} {
			if b, err := os.ReadFile(filepath.Join(home, f)); err != nil || string(b) != "mine" {
				t.Errorf("%s: %s is %q, %v", name, f, b, err)
			}
		}
		if _, err := os.Lstat(filepath.Join(home, c.made)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGetRoot copies all of a guest to a new directory.
func TestGetRoot(t *testing.T) {
	home := t.TempDir()
	archive := tarOf(t, tar.Header{Name: "root", Typeflag: tar.TypeDir}, tar.Header{Name: "root/etc/hosts"})
	if err := hostile(t, archive).Get(t.Context(), "/", home+"/new", GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(home, "new/etc/hosts")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"root/../up", "up", "root/etc/../../up", "/etc/up"} {
		archive := tarOf(t, tar.Header{Name: "root", Typeflag: tar.TypeDir}, tar.Header{Name: name})
		if err := hostile(t, archive).Get(t.Context(), "/", home+"/newer", GetOptions{}); err == nil {
			t.Errorf("%s was taken", name)
		}
		if _, err := os.Lstat(filepath.Join(home, "up")); err == nil {
			t.Errorf("%s came to be beside the copy", name)
		}
	}
}

// TestGetHalf: of a file that does not come whole nothing is left, and what came whole stays.
func TestGetHalf(t *testing.T) {
	home := t.TempDir()
	archive := tarOf(t, tar.Header{Name: "x", Typeflag: tar.TypeDir}, tar.Header{Name: "x/whole"}, tar.Header{Name: "x/half"})
	archive = archive[:bytes.LastIndex(archive, []byte("x/half"))+3]
	if err := hostile(t, archive).Get(t.Context(), "/x", home, GetOptions{}); err == nil {
		t.Error("half an archive is enough")
	}
	if _, err := os.Lstat(home + "/x/half"); err == nil {
		t.Error("half a file is there")
	}
	if _, err := os.Lstat(home + "/x/whole"); err != nil {
		t.Error(err)
	}
}

// TestGetBounds: what is too large is not written, and the way there is not the guest's.
func TestGetBounds(t *testing.T) {
	home := t.TempDir()
	files := []tar.Header{{Name: "x", Typeflag: tar.TypeDir}}
	for _, name := range "abcd" {
		files = append(files, tar.Header{Name: "x/" + string(name)})
	}
	archive := tarOf(t, files...)
	for limit, fits := range map[int64]bool{0: true, 5 * block: true, 5*block - 1: false, 1: false} {
		err := hostile(t, archive).Get(t.Context(), "/x", home, GetOptions{MaxSize: limit})
		var large *TooLargeError
		if fits != (err == nil) || !fits && !errors.As(err, &large) {
			t.Errorf("at most %d: %v", limit, err)
		}
	}
	huge := &bytes.Buffer{}
	tar.NewWriter(huge).WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Size: 1 << 62})
	if err := hostile(t, huge.Bytes()).Get(t.Context(), "/huge", home, GetOptions{}); !errors.As(err, new(*TooLargeError)) {
		t.Errorf("more than there is room for: %v", err)
	}
	if _, err := os.Lstat(home + "/huge"); err == nil {
		t.Error("it was begun")
	}

	share := filepath.Join(home, "share")
	os.MkdirAll(filepath.Join(share, "dir"), 0o755)
	os.Mkdir(filepath.Join(home, "secret"), 0o755)
	os.Symlink("../secret", filepath.Join(share, "out"))
	os.Symlink("share/dir", filepath.Join(home, "mine"))
	for to, refused := range map[string]bool{"share/out": true, "share/out/new": true, "mine": false, "share/dir": false, "secret": false} {
		err := hostile(t, archive).Get(t.Context(), "/x", filepath.Join(home, to), GetOptions{Guest: []string{share}})
		if refused != (err != nil) || refused && !errors.As(err, new(*paths.GuestError)) {
			t.Errorf("to %s: %v", to, err)
		}
		if _, err := os.Lstat(filepath.Join(home, "secret/x")); err == nil && to != "secret" && refused {
			t.Errorf("to %s: it was followed", to)
		}
		os.RemoveAll(filepath.Join(home, "secret/x"))
	}
}
