package credentials

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestHomes(t *testing.T) {
	users := filepath.Join(t.TempDir(), "passwd")
	text := "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/usr/sbin:/bin/false\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/home/bob/:/bin/sh\n" +
		"nobody:x:65534:65534::/nonexistent:/bin/false\nbroken\n+::::::\nslash:x:1002:1002::/:/bin/sh\n"
	if err := os.WriteFile(users, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uid  int
		own  string
		want []string
	}{
		{1000, "/home/ann", []string{"/home/ann"}},
		{1000, "/somewhere", []string{"/somewhere", "/home/ann"}},
		{1000, "", []string{"/home/ann"}},
		{0, "/root", []string{"/root", "/home/ann", "/home/bob"}},
	} {
		if got := homes(c.uid, c.own, users); !slices.Equal(got, c.want) {
			t.Errorf("user %d with %q: %q, want %q", c.uid, c.own, got, c.want)
		}
	}
	if got := homes(0, "/root", "/nowhere"); !slices.Equal(got, []string{"/root"}) {
		t.Errorf("without a file of users: %q", got)
	}
}

func TestPaths(t *testing.T) {
	env := map[string]string{
		"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/settings/", "XDG_CACHE_HOME": "relative",
		"KUBECONFIG": "/clusters/one:/clusters/two:", "GNUPGHOME": "/keys/../keys/gnupg", "CARGO_HOME": "/cargo",
		"HISTFILE": "here", "GH_CONFIG_DIR": "/home/ann", "DOCKER_CONFIG": "/", "NETRC": "",
	}
	got := expand([]string{"/home/ann", "/root"}, func(name string) string { return env[name] })
	for _, want := range []string{
		"/home/ann/.ssh", "/root/.ssh", "/home/ann/.config/gcloud", "/etc/shadow", "/home/ann/.local/share/vmm", "/data/vmm", "/settings/gcloud",
		"/clusters/one", "/clusters/two", "/keys/gnupg", "/cargo/credentials.toml",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, p := range got {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsAny(p, "*~#$:") || p == "/" || p == "/home/ann" || p == "/cargo" {
			t.Errorf("%q", p)
		}
	}
}

// TestPattern: of a pattern there is what is there.
func TestPattern(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{".any_history", "all.kdbx", "else"} {
		if err := os.WriteFile(filepath.Join(home, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := expand([]string{home}, func(string) string { return "" })
	for name, want := range map[string]bool{".any_history": true, "all.kdbx": true, "else": false} {
		if slices.Contains(got, filepath.Join(home, name)) != want {
			t.Errorf("%s is hidden: %v", name, !want)
		}
	}
}

// TestElsewhere: a home that is a symbolic link is hidden by both of its names, also what is not there yet.
func TestElsewhere(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	home, real := filepath.Join(top, "home"), filepath.Join(top, "real")
	if err := errors.Join(os.Mkdir(real, 0o700), os.Symlink(real, home)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	got := Paths()
	for _, want := range []string{filepath.Join(home, ".aws"), filepath.Join(real, ".aws")} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
}
