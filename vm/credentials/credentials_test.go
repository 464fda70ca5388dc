package credentials

import (
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
	got := paths([]string{"/home/ann", "/root"})
	for _, want := range []string{"/home/ann/.ssh", "/root/.ssh", "/home/ann/.config/gcloud", "/etc/shadow"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, p := range got {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsAny(p, "*~#") {
			t.Errorf("%q", p)
		}
	}
}
