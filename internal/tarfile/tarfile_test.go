package tarfile

import (
	"archive/tar"
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestXattrNames writes attributes with odd names to an archive, and reads them again.
func TestXattrNames(t *testing.T) {
	keys := map[string]string{
		"user.plain": "user.plain", "user.a=b": "user.a%3Db", "user.=": "user.%3D", "user.c%d": "user.c%d", "user.e%3Df": "user.e%253Df",
		"user.g%25h": "user.g%2525h", "user.i%=": "user.i%25%3D", "user.q%3df": "user.q%3df",
	}
	h := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: "f", Mode: 0o600, PAXRecords: map[string]string{}}
	want := map[string]string{}
	for name, key := range keys {
		if got := XattrKey(name); got != XattrRecord+key {
			t.Errorf("%s: %s", name, got)
		}
		h.PAXRecords[XattrKey(name)], want[name] = name, name
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	archive := b.Bytes()
	read, err := tar.NewReader(bytes.NewReader(archive)).Next()
	if err != nil {
		t.Fatal(err)
	}
	if got := Xattrs(read); !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
	c := exec.Command("tar", "--xattrs", "--no-same-owner", "-x")
	c.Dir, c.Stdin = t.TempDir(), bytes.NewReader(archive)
	if out, err := c.CombinedOutput(); err != nil {
		t.Skipf("no GNU tar: %v\n%s", err, out)
	}
	file := filepath.Join(c.Dir, "f")
	if err := unix.Setxattr(file, "user.plain", []byte("user.plain"), 0); err != nil {
		t.Skipf("no attributes in %s: %v", os.TempDir(), err)
	}
	for name := range keys {
		value := make([]byte, 100)
		if n, err := unix.Getxattr(file, name, value); err != nil || string(value[:n]) != name {
			t.Errorf("GNU tar: %s: %q, %v", name, value[:max(n, 0)], err)
		}
	}
}
