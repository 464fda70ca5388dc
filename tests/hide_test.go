package tests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHidden looks for the user's secrets from a guest that has the host's files.
func TestHidden(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	home, err := os.MkdirTemp("/var/tmp", "vmm-test-home-") // the guest has a /tmp of its own
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	cache, err := os.UserCacheDir() // where the guest's kernel is
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("HOME", home)
	work := filepath.Join(home, "work")
	for _, f := range []string{".ssh/id", ".netrc", ".config/gh/hosts.yml", ".config/seen", "mine/secret", "work/file"} {
		path := filepath.Join(home, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(f+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// What the root has below the guest's own file systems comes first.
	const look = `cd "$1"; for d in tmp run dev proc sys; do ls -A /run/vmm/root/$d; done; cat .netrc; ls -A .ssh; ls -A .config/gh; cat .config/seen; ls -A mine; cat work/file; cat /etc/shadow; echo end`
	for _, c := range []struct {
		name  string
		cwd   string
		flags []string
		want  string
	}{
		{"credentials", work, nil, ".config/seen\nsecret\nwork/file\nend\n"},
		{"exposed", work, []string{"--expose", filepath.Join(home, ".ssh"), "--expose", filepath.Join(home, ".netrc")}, ".netrc\nid\n.config/seen\nsecret\nwork/file\nend\n"},
		{"hidden", work, []string{"--hide", filepath.Join(home, "mine")}, ".config/seen\nwork/file\nend\n"},
		{"untrusted", work, []string{"--untrusted"}, "work/file\nend\n"},
		{"untrusted at home", home, []string{"--untrusted"}, ".config/seen\nsecret\nwork/file\nend\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, errs, _ := inDir(t, c.cwd, nil, append(append([]string{"run", "--timeout", bootLimit}, c.flags...), "--", "sh", "-c", look, "sh", home)...)
			if out != c.want {
				t.Errorf("the guest saw %q, want %q\n%s", out, c.want, errs)
			}
		})
	}
	t.Run("written", func(t *testing.T) {
		out, errs, _ := inDir(t, work, nil, "run", "--timeout", bootLimit, "--rw", home, "--", "sh", "-c",
			`cd "$1"; echo mine > .ssh/authorized_keys; mv .ssh moved; mkdir .aws; echo mine > .netrc; echo seen > new`, "sh", home)
		if strings.Count(errs, "ermission denied") != 4 {
			t.Errorf("%s%s", out, errs)
		}
		if b, err := os.ReadFile(filepath.Join(home, "new")); err != nil || string(b) != "seen\n" {
			t.Errorf("what may be written: %q, %v", b, err)
		}
		for _, f := range []string{".ssh/authorized_keys", ".aws", "moved"} {
			if _, err := os.Lstat(filepath.Join(home, f)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s was made: %v", f, err)
			}
		}
		if b, err := os.ReadFile(filepath.Join(home, ".netrc")); err != nil || string(b) != ".netrc\n" {
			t.Errorf(".netrc: %q, %v", b, err)
		}
	})
	if out, status := vmm(t, "run", "--expose", filepath.Join(home, ".ssh", "known_hosts"), "--", "true"); status != 2 || !strings.Contains(out, ".ssh is hidden") {
		t.Errorf("a part of what is hidden: status %d, %s", status, out)
	}
}
