package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/internal/tarfile"
)

// TestUpper tells what is in an upper directory, and makes a layer of it.
func TestUpper(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("whiteouts need root")
	}
	dir := t.TempDir()
	u := &Upper{Dir: dir + "/upper", Lower: dir + "/lower", Own: []string{"etc", "etc/hosts", "proc"}}
	write := func(names ...string) {
		for _, n := range names {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, n)), 0o755); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(n, "/") {
				os.MkdirAll(filepath.Join(dir, n), 0o755)
			} else if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("lower/same/in", "lower/gone", "lower/file", "lower/opaque/old", "lower/opaque/sub/old", "lower/opaque/both", "lower/socket", "lower/mode/x",
		"upper/etc/hosts", "upper/proc/", "upper/file", "upper/same/new", "upper/opaque/both", "upper/opaque/sub/new", "upper/untouched/", "lower/untouched/x", "upper/mode/", "upper/one", "upper/na\xffme")
	if err := unix.Setxattr(dir+"/upper/opaque", TrustedXattrs+overlayOpaque, []byte("y"), 0); err != nil {
		t.Skip(err)
	}
	for _, err := range []error{
		unix.Mknod(dir+"/upper/gone", unix.S_IFCHR, 0),
		unix.Mknod(dir+"/upper/socket", unix.S_IFSOCK|0o644, 0),
		unix.Mknod(dir+"/upper/pipe", unix.S_IFIFO|0o644, 0),
		os.Link(dir+"/upper/one", dir+"/upper/two"),
		os.Symlink("nowhere", dir+"/upper/link"),
		os.Chmod(dir+"/upper/mode", 0o700),
		unix.Setxattr(dir+"/upper/one", "user.x=y", []byte("a\x00b"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := connect(t, &Server{Upper: u})
	var got []string
	if err := c.Changes(t.Context(), func(c Change) error {
		got = append(got, fmt.Sprintf("%c %s", c.Kind, c.Path))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"C /file", "D /gone", "A /link", "C /mode", "A /na\xffme", "A /one", "C /opaque", "C /opaque/both", "D /opaque/old", "C /opaque/sub", "A /opaque/sub/new", "D /opaque/sub/old",
		"A /pipe", "C /same", "A /same/new", "C /socket", "A /two"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("changes: %q, want %q", got, want)
	}
	var b bytes.Buffer
	if err := c.GetLayer(t.Context(), io.Discard, true); !errors.Is(err, ErrNotAlone) { // it would stop the test
		t.Errorf("all others are stopped by who needs them: %v", err)
	}
	if err := c.GetLayer(t.Context(), &b, false); err != nil {
		t.Fatal(err)
	}
	got = nil
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r)
		got = append(got, fmt.Sprintf("%c %s %o %s %q %s", h.Typeflag, h.Name, h.Mode, h.Linkname, tarfile.Xattrs(h)["user.x=y"], body))
	}
	want = []string{`0 file 644  "" upper/file`, `0 .wh.gone 600  "" `, `2 link 777 nowhere "" `, `5 mode/ 700  "" `, "0 na\xffme 644  \"\" upper/na\xffme", `0 one 644  "a\x00b" upper/one`,
		`5 opaque/ 755  "" `, `0 opaque/.wh..wh..opq 600  "" `, `0 opaque/both 644  "" upper/opaque/both`, `5 opaque/sub/ 755  "" `, `0 opaque/sub/new 644  "" upper/opaque/sub/new`,
		`6 pipe 644  "" `, `5 same/ 755  "" `, `0 same/new 644  "" upper/same/new`, `0 .wh.socket 600  "" `, `1 two 644 one "" `}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("layer:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	write("upper/.wh.x")
	if err := c.GetLayer(t.Context(), io.Discard, false); !errorHas(err, ".wh.") {
		t.Errorf("a name as of a whiteout: %v", err)
	}
	if err := connect(t, &Server{}).Changes(t.Context(), nil); !errorHas(err, errNoUpper.Error()) {
		t.Errorf("no overlay: %v", err)
	}
}
