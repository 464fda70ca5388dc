package tomlfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	for _, c := range []struct{ text, want string }{
		{"a = 1\n[[b]]\nc = \"x\"", ""},
		{"a = 1\n=", "x.toml:2: "},
		{"a = \"many\"", "x.toml: toml: line 1 "},
		{"a = 1\nz = 2", `x.toml: there is no "z"`},
		{"[[b]]\nz = 2", `x.toml: there is no "b.z"`},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		var to struct {
			A int
			B []struct{ C string }
		}
		err := Decode(file, &to)
		if c.want == "" {
			if err != nil || to.A != 1 || len(to.B) != 1 || to.B[0].C != "x" {
				t.Errorf("%q: %+v, %v", c.text, to, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
	if err := Decode("/nowhere/x.toml", new(struct{})); err == nil || !strings.Contains(err.Error(), "/nowhere/x.toml") {
		t.Errorf("no file: %v", err)
	}
}
