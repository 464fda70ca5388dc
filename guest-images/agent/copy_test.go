package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copies are both ways to copy between two paths.
var copies = map[string]func(c *Client, ctx context.Context, from, to string, follow bool) error{
	"put": func(c *Client, ctx context.Context, from, to string, follow bool) error {
		return c.Put(ctx, from, to, PutOptions{Follow: follow})
	},
	"get": func(c *Client, ctx context.Context, from, to string, follow bool) error {
		return c.Get(ctx, from, to, GetOptions{Follow: follow})
	},
}

// tree is what is in a directory: files with their contents, directories with "/", links
// with "-> TARGET", pipes with "|".
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		switch {
		case err != nil || rel == ".":
			return err
		case d.IsDir():
			rel += "/"
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			rel += " -> " + to
		case d.Type()&fs.ModeNamedPipe != 0:
			rel += "|"
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(b)
		}
		out = append(out, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCopy has the rows of the table in docs/sandbox.md, both ways.
func TestCopy(t *testing.T) {
	source := t.TempDir()
	for name, content := range map[string]string{"file": "new", "empty": "", "dir/f": "1", "dir/sub/g": "2"} {
		os.MkdirAll(filepath.Dir(filepath.Join(source, name)), 0o755)
		os.WriteFile(filepath.Join(source, name), []byte(content), 0o644)
	}
	os.Symlink("f", filepath.Join(source, "dir/l"))
	os.Symlink("dir", filepath.Join(source, "dirlink"))
	os.Symlink("file", filepath.Join(source, "filelink"))
	os.Symlink("nowhere", filepath.Join(source, "dangling"))
	unix.Mkfifo(filepath.Join(source, "pipe"), 0o600)
	inDir := func(top string) []string {
		list := []string{top + "/", top + "/f=1", top + "/l -> f", top + "/sub/", top + "/sub/g=2"}
		return list
	}
	content := []string{"f=1", "l -> f", "sub/", "sub/g=2"}
	for _, c := range []struct {
		from, to string
		there    []string // as tree has it
		follow   bool
		want     []string // beside and in the place of what is there
		err      string
	}{
		// A file.
		{from: "file", to: "new", want: []string{"new=new"}},
		{from: "empty", to: "new", want: []string{"new="}},
		{from: "file", to: "./new", want: []string{"new=new"}},
		{from: "file", to: "new/", err: "there is no directory"},
		{from: "file", to: "new/.", err: "there is no directory"},
		{from: "file", to: "no/new", err: "there is no directory"},
		{from: "file", to: "d", there: []string{"d/"}, want: []string{"d/", "d/file=new"}},
		{from: "file", to: "d/", there: []string{"d/"}, want: []string{"d/", "d/file=new"}},
		{from: "file", to: "d/.", there: []string{"d/"}, want: []string{"d/", "d/file=new"}},
		{from: "file", to: ".", want: []string{"file=new"}},
		{from: "file", to: "d/..", there: []string{"d/"}, want: []string{"d/", "file=new"}},
		{from: "file", to: "f", there: []string{"f=older"}, want: []string{"f=new"}},
		{from: "file", to: "f/", there: []string{"f=older"}, err: "not a directory"},
		{from: "file", to: "f/x", there: []string{"f=older"}, err: "not a directory"},
		{from: "file", to: "d", there: []string{"d/", "d/file/"}, err: "is a directory"},
		{from: "file/", to: "new", err: "not a directory"},
		{from: "nowhere", to: "new", err: "nowhere"},
		// A destination that is a link leads on.
		{from: "file", to: "l", there: []string{"f=older", "l -> f"}, want: []string{"f=new", "l -> f"}},
		{from: "file", to: "l", there: []string{"d/", "l -> d"}, want: []string{"d/", "d/file=new", "l -> d"}},
		{from: "file", to: "l", there: []string{"l -> made"}, want: []string{"l -> made", "made=new"}},
		{from: "file", to: "l", there: []string{"l -> no/made"}, err: "/no"},
		{from: "dir", to: "l", there: []string{"d/", "l -> d"}, want: append(prefixed("d/", inDir("dir")), "l -> d")},
		{from: "dir/.", to: "l", there: []string{"d/", "l -> d"}, want: append(inDir("d"), "l -> d")},
		// A directory.
		{from: "dir", to: "new", want: inDir("new")},
		{from: "dir", to: "new/", want: inDir("new")},
		{from: "dir/", to: "new", want: inDir("new")},
		{from: "dir/.", to: "new", want: inDir("new")},
		{from: "dir/.", to: "new/", want: inDir("new")},
		{from: "dir", to: "no/new", err: "there is no directory"},
		{from: "dir", to: "d", there: []string{"d/"}, want: prefixed("d/", inDir("dir"))},
		{from: "dir/", to: "d/", there: []string{"d/"}, want: prefixed("d/", inDir("dir"))},
		{from: "dir/.", to: "d", there: []string{"d/"}, want: inDir("d")},
		{from: "dir/.", to: ".", there: []string{"f=older", "other=0"}, want: append([]string{"other=0"}, content...)},
		{from: "dir", to: ".", there: []string{"dir/", "dir/f=older", "dir/other=0"}, want: append([]string{"dir/other=0"}, inDir("dir")...)},
		{from: "dir", to: "f", there: []string{"f=older"}, err: "not a directory"},
		{from: "dir/.", to: "f", there: []string{"f=older"}, err: "not a directory"},
		{from: "dir/.", to: "d", there: []string{"d/", "d/f/"}, err: "is a directory"},
		{from: "dir/.", to: "d", there: []string{"d/", "d/sub=0"}, err: "not a directory"},
		{from: "dir/.", to: "d", there: []string{"d/", "d/sub -> ..", "g=0"}, err: "not a directory"},
		{from: "dir/.", to: "d", there: []string{"d/", "d/f -> ../g", "g=0"}, want: append([]string{"g=0"}, inDir("d")...)},
		{from: "dir/sub/..", to: "new", want: inDir("new")},
		// A source that is a link.
		{from: "filelink", to: "new", want: []string{"new -> file"}},
		{from: "filelink", to: "d", there: []string{"d/"}, want: []string{"d/", "d/filelink -> file"}},
		{from: "filelink", to: "f", there: []string{"f=older"}, want: []string{"f -> file"}},
		{from: "filelink", to: "new", follow: true, want: []string{"new=new"}},
		{from: "filelink", to: "d", there: []string{"d/"}, follow: true, want: []string{"d/", "d/filelink=new"}},
		{from: "dirlink", to: "new", want: []string{"new -> dir"}},
		{from: "dirlink/", to: "new", want: inDir("new")},
		{from: "dirlink/", to: "d", there: []string{"d/"}, want: prefixed("d/", inDir("dirlink"))},
		{from: "dirlink/.", to: "d", there: []string{"d/"}, want: inDir("d")},
		{from: "dirlink", to: "new", follow: true, want: inDir("new")},
		{from: "dangling", to: "new", want: []string{"new -> nowhere"}},
		{from: "dangling", to: "new", follow: true, err: "dangling"},
		{from: "pipe", to: "new", err: "a device or a pipe"},
		{from: "pipe", to: "d", there: []string{"d/"}, err: "a device or a pipe"},
	} {
		for way, copy := range copies {
			dir := t.TempDir()
			for _, what := range c.there {
				name, content, isFile := strings.Cut(what, "=")
				link, to, isLink := strings.Cut(what, " -> ")
				switch {
				case isLink:
					os.Symlink(to, filepath.Join(dir, link))
				case isFile:
					os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)
				default:
					os.Mkdir(filepath.Join(dir, name), 0o755)
				}
			}
			before := tree(t, dir)
			err := copy(connect(t, &Server{}), t.Context(), source+"/"+c.from, dir+"/"+c.to, c.follow)
			got := tree(t, dir)
			slices.Sort(got)
			want := slices.Clone(c.want)
			slices.Sort(want)
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%s %s %s with %v: %v, want %q", way, c.from, c.to, c.there, err, c.err)
				}
				for _, name := range before {
					if !slices.Contains(got, name) {
						t.Errorf("%s %s %s with %v: %s is lost", way, c.from, c.to, c.there, name)
					}
				}
			case err != nil || !slices.Equal(got, want):
				t.Errorf("%s %s %s with %v: %v, want %v; %v", way, c.from, c.to, c.there, got, want, err)
			}
		}
	}
}

func prefixed(prefix string, list []string) []string {
	out := []string{prefix}
	for _, name := range list {
		out = append(out, prefix+name)
	}
	return out
}

// TestCopyThrough: what is there and is written to stays what it is.
func TestCopyThrough(t *testing.T) {
	for way, copy := range copies {
		dir := t.TempDir()
		path := func(name string) string { return filepath.Join(dir, name) }
		os.WriteFile(path("from"), []byte("new"), 0o640)
		os.WriteFile(path("one"), []byte("older and longer"), 0o600)
		os.Link(path("one"), path("two"))
		c := connect(t, &Server{})
		if err := copy(c, t.Context(), path("from"), path("one"), false); err != nil {
			t.Errorf("%s to a hard link: %v", way, err)
		}
		st, _ := os.Stat(path("two"))
		if b, _ := os.ReadFile(path("two")); string(b) != "new" || st.Mode().Perm() != 0o640 {
			t.Errorf("%s to a hard link: the other one has %q, %v", way, b, st.Mode())
		}
		unix.Mkfifo(path("pipe"), 0o600)
		read := make(chan string)
		go func() {
			time.Sleep(3 * pipePoll) // it is waited for
			b, _ := os.ReadFile(path("pipe"))
			read <- string(b)
		}()
		if err := copy(c, t.Context(), path("from"), path("pipe"), false); err != nil {
			t.Errorf("%s to a pipe: %v", way, err)
		}
		if got := <-read; got != "new" {
			t.Errorf("%s to a pipe: %q", way, got)
		}
		for name, number := range map[string]uint64{"null": unix.Mkdev(1, 3), "full": unix.Mkdev(1, 7)} {
			if err := unix.Mknod(path(name), unix.S_IFCHR|0o600, int(number)); err != nil {
				t.Logf("no device: %v", err)
				continue
			}
			if err := copy(c, t.Context(), path("from"), path(name), false); (name == "full") != errorHas(err, "no space left") {
				t.Errorf("%s to %s: %v", way, name, err)
			}
			if st, err := os.Lstat(path(name)); err != nil || st.Mode()&fs.ModeCharDevice == 0 {
				t.Errorf("%s to %s: it is %v", way, name, st.Mode())
			}
		}
	}
	// Whom nobody reads can be given up.
	pipe := filepath.Join(t.TempDir(), "pipe")
	unix.Mkfifo(pipe, 0o600)
	ctx, cancel := context.WithTimeout(t.Context(), 2*pipePoll)
	defer cancel()
	if err := connect(t, &Server{}).Get(ctx, "/etc/passwd", pipe, GetOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a pipe that nobody reads: %v", err)
	}
}

func errorHas(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// TestCopyModes: files and directories have their modes and times in the end, also those
// that cannot be written to meanwhile.
func TestCopyModes(t *testing.T) {
	when := time.Unix(1e9, 0)
	for way, copy := range copies {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		os.MkdirAll(from+"/s/deep", 0o755)
		os.WriteFile(from+"/s/deep/f", []byte("1"), 0o444)
		os.WriteFile(from+"/g", []byte("2"), 0o755)
		names := []string{"s/deep/f", "s/deep", "s", "g", "."}
		modes := map[string]fs.FileMode{"s/deep": 0o500, "s": 0o555, ".": 0o711, "s/deep/f": 0o444, "g": 0o755}
		for _, name := range names {
			os.Chtimes(filepath.Join(from, name), when, when)
			os.Chmod(filepath.Join(from, name), modes[name])
		}
		for range 2 { // the second time into those that are there
			if err := copy(connect(t, &Server{}), t.Context(), from+"/.", to, false); err != nil {
				t.Errorf("%s: %v", way, err)
			}
			for _, name := range names {
				st, err := os.Stat(filepath.Join(to, name))
				if err != nil {
					t.Errorf("%s: %v", way, err)
				} else if name != "." && (st.Mode().Perm() != modes[name] || !st.ModTime().Equal(when)) {
					t.Errorf("%s: %s has mode %v and time %v", way, name, st.Mode(), st.ModTime())
				}
			}
		}
		for _, top := range []string{from, to} { // for those who remove it
			for _, name := range []string{"s", "s/deep"} {
				os.Chmod(filepath.Join(top, name), 0o755)
			}
		}
	}
}

// TestCopyKernelFiles: the kernel's files do not say how much is in them.
func TestCopyKernelFiles(t *testing.T) {
	for way, copy := range copies {
		for _, from := range []string{"/proc/filesystems", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/kallsyms"} {
			want, err := os.ReadFile(from)
			if err != nil {
				continue
			}
			to := filepath.Join(t.TempDir(), "copy")
			if err := copy(connect(t, &Server{}), t.Context(), from, to, false); err != nil {
				t.Errorf("%s %s: %v", way, from, err)
			}
			if got, _ := os.ReadFile(to); !bytes.Equal(got, want) {
				t.Errorf("%s %s: %d bytes, want %d", way, from, len(got), len(want))
			}
		}
	}
}

// TestCopyArchives: archives of one's own go in, and the guest's come out.
func TestCopyArchives(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/file", nil, 0o644)
	c := connect(t, &Server{})
	in := tarOf(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "./a/b"}, tar.Header{Name: "/c"})
	os.Mkdir(dir+"/d", 0o750)
	if err := c.PutArchive(t.Context(), bytes.NewReader(in), dir+"/d"); err != nil {
		t.Error(err)
	}
	if got, want := tree(t, dir+"/d"), []string{"a/", "a/b=./a/b", "c=/c"}; !slices.Equal(got, want) {
		t.Errorf("%v came of an archive, want %v", got, want)
	}
	if st, _ := os.Stat(dir + "/d"); st.Mode().Perm() != 0o750 {
		t.Errorf("the directory has mode %v", st.Mode())
	}
	for to, want := range map[string]string{"/new": "no such file", "/file": "not a directory"} {
		// Of a reader that never ends not all is waited for.
		r, w := io.Pipe()
		go w.Write(in)
		if err := c.PutArchive(t.Context(), r, dir+to); !errorHas(err, want) {
			t.Errorf("an archive to %s: %v", to, err)
		}
		r.Close()
	}
	if err := c.PutArchive(t.Context(), strings.NewReader("no archive, but longer than a block of one"+strings.Repeat(".", 512)), dir); !errorHas(err, "no tar archive") {
		t.Errorf("any bytes are an archive: %v", err)
	}
	for from, want := range map[string][]string{
		"/d": {"d", "d/a", "d/a/b", "d/c"}, "/d/.": {".", "a", "a/b", "c"}, "/d/c": {"c"}, "/d/a/b": {"b"},
	} {
		var out bytes.Buffer
		if err := c.GetArchive(t.Context(), dir+from, &out, GetOptions{}); err != nil {
			t.Errorf("%s: %v", from, err)
		}
		size := out.Len()
		var got []string
		for r := tar.NewReader(&out); ; {
			h, err := r.Next()
			if err != nil {
				break
			}
			got = append(got, filepath.Clean(h.Name))
		}
		if !slices.Equal(got, want) {
			t.Errorf("the archive of %s has %v, want %v", from, got, want)
		}
		for limit, fits := range map[int64]bool{int64(size): true, int64(size) - 1: false} {
			if err := c.GetArchive(t.Context(), dir+from, io.Discard, GetOptions{MaxSize: limit}); fits == errors.As(err, new(*TooLargeError)) {
				t.Errorf("%s, %d bytes of %d: %v", from, limit, size, err)
			}
		}
	}
	if err := c.GetArchive(t.Context(), dir+"/nowhere", io.Discard, GetOptions{}); !errorHas(err, "nowhere") {
		t.Errorf("an archive of nothing: %v", err)
	}
}

// TestRefusedCopy: what a guest says that takes no more is told, and not how the connection ended.
func TestRefusedCopy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, make([]byte, 1<<20), 0o644)
	c := answering(t, func(l *Link) { l.SendJSON(FrameReply, Reply{Error: "no room"}) })
	for range 200 {
		if err := c.Put(t.Context(), file, "/x", PutOptions{}); !errorHas(err, "no room") {
			t.Fatal(err)
		}
	}
}

// TestRooted: a relative path of the guest begins at its root.
func TestRooted(t *testing.T) {
	for path, want := range map[string]string{"etc/": "/etc/", ".": "/.", "/x": "/x", "": "/", "a/.": "/a/."} {
		if got := rooted(path); got != want {
			t.Errorf("%q is %q, want %q", path, got, want)
		}
	}
}
