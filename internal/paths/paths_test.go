package paths

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAbs: a path means what it does to the kernel, by whatever links a shell has come to
// the current directory.
func TestAbs(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"real/deep/work/sub", "shell", "beside"} {
		os.MkdirAll(filepath.Join(top, dir), 0o755)
	}
	os.Symlink("../real/deep/work", filepath.Join(top, "shell/link"))
	os.Symlink("../../../beside", filepath.Join(top, "real/deep/work/out"))
	t.Chdir(filepath.Join(top, "shell/link")) // it sets PWD, as a shell does
	for path, want := range map[string]struct{ abs, real string }{
		".":                             {"real/deep/work", "real/deep/work"},
		"sub":                           {"real/deep/work/sub", "real/deep/work/sub"},
		"./sub/":                        {"real/deep/work/sub", "real/deep/work/sub"},
		"..":                            {"real/deep", "real/deep"},
		"../work":                       {"real/deep/work", "real/deep/work"},
		"out":                           {"real/deep/work/out", "beside"},
		"out/..":                        {"", ""},
		"out/../beside":                 {"beside", "beside"},
		"sub/../../work/out":            {"real/deep/work/out", "beside"},
		"new":                           {"real/deep/work/new", "-"},
		"new/er":                        {"real/deep/work/new/er", "-"},
		"gone/../new":                   {"real/deep/work/new", "-"},
		top + "/shell/link":             {"shell/link", "real/deep/work"},
		top + "/shell/link/../work/sub": {"real/deep/work/sub", "real/deep/work/sub"},
	} {
		if got, err := Abs(path); err != nil || got != filepath.Join(top, want.abs) {
			t.Errorf("Abs(%q) is %q, %v, want %q", path, got, err, want.abs)
		}
		got, err := Real(path)
		if want.real == "-" {
			if err == nil {
				t.Errorf("Real(%q), which is not there, is %q", path, got)
			}
		} else if err != nil || got != filepath.Join(top, want.real) {
			t.Errorf("Real(%q) is %q, %v, want %q", path, got, err, want.real)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/", "/a", false}, {"/a", "/", true}, {"/", "/", true}} {
		if got := Below(c.path, c.dir); got != c.want {
			t.Errorf("%s below %s: %v", c.path, c.dir, got)
		}
	}
}
