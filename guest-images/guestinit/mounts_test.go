package guestinit

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestFromTop: what lies further up in the guest's root is mounted earlier, whatever it is
// called and in whatever order it comes.
func TestFromTop(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(top, "a/b/c"), 0o755)
	os.Symlink(filepath.Join(top, "a/b/c"), filepath.Join(top, "deep"))
	os.Symlink(top, filepath.Join(top, "a/up"))
	for _, c := range []struct{ given, want []string }{
		{[]string{"a/b", "a"}, []string{"a", "a/b"}},
		{[]string{"a", "a/b"}, []string{"a", "a/b"}},
		{[]string{"x/y/z", "x/y", "x"}, []string{"x", "x/y", "x/y/z"}},
		{[]string{"deep", "a/b"}, []string{"a/b", "deep"}},
		{[]string{"deep/new", "a/b/c"}, []string{"a/b/c", "deep/new"}},
		{[]string{"a/b", "a/up"}, []string{"a/up", "a/b"}},
		{[]string{"y", "x", "z"}, []string{"y", "x", "z"}},
	} {
		var list []Mount
		for _, p := range c.given {
			list = append(list, Mount{Path: filepath.Join(top, p)})
		}
		var got []string
		for _, m := range fromTop(list) {
			rel, _ := filepath.Rel(top, m.Path)
			got = append(got, rel)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v is mounted as %v, want %v", c.given, got, c.want)
		}
	}
}
