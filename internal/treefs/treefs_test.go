package treefs

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"
)

func filled() (t *FS, asked *[]string) {
	asked = new([]string)
	t = New(func(name string) ([]byte, error) {
		*asked = append(*asked, name)
		return []byte("kernel"), nil
	})
	t.Add("etc/fstab", []byte("# none\n"))
	t.Promise("boot/vmlinuz-1", 6)
	t.Link("vmlinuz", "/boot/vmlinuz-1")
	t.Link("boot/vmlinuz", "vmlinuz-1")
	t.Link("a", "b")
	t.Link("b", "../a")
	t.Add("../outside", nil)
	t.Add("/absolute", nil)
	t.Add("etc/fstab/below", nil)
	t.Add("boot", []byte("a file in a directory's place"))
	return t, asked
}

func TestFS(t *testing.T) {
	tree, asked := filled()
	for name, want := range map[string]string{
		"etc/fstab": "# none\n", "boot/vmlinuz-1": "kernel", "vmlinuz": "kernel", "boot/vmlinuz": "kernel",
	} {
		if b, err := fs.ReadFile(tree, name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, name := range *asked {
		if name != "boot/vmlinuz-1" {
			t.Errorf("asked for %q", name)
		}
	}
	if len(*asked) != 3 {
		t.Errorf("asked %d times", len(*asked))
	}
	for name, want := range map[string]error{
		"a": fs.ErrInvalid, "outside": fs.ErrNotExist, "absolute": fs.ErrNotExist, "etc/fstab/below": fs.ErrNotExist, "../etc": fs.ErrInvalid,
	} {
		if _, err := tree.Open(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if st, err := fs.Stat(tree, "boot/vmlinuz-1"); err != nil || st.Size() != 6 {
		t.Errorf("stat: %v, %v", st, err)
	}
}

// TestAsStandard holds the tree to what programs expect of a file system.
func TestAsStandard(t *testing.T) {
	tree := New(func(string) ([]byte, error) { return []byte("kernel"), nil })
	tree.Add("etc/fstab", []byte("# none\n"))
	tree.Promise("boot/vmlinuz-1", 6)
	if err := fstest.TestFS(tree, "etc/fstab", "boot/vmlinuz-1"); err != nil {
		t.Error(err)
	}
}
