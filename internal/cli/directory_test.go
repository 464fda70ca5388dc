package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDirectory: a command starts where the shell was, whatever links have led there, and
// the guest sees that directory also where its own file systems would hide it.
func TestDirectory(t *testing.T) {
	hiddenDir, err := filepath.EvalSymlinks(t.TempDir()) // below /tmp
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hiddenDir, "/tmp/") {
		t.Skip("temporary files are not in /tmp")
	}
	seenDir, err := os.MkdirTemp("/var/tmp", "vmm-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(seenDir) })
	for _, top := range []string{hiddenDir, seenDir} {
		os.MkdirAll(filepath.Join(top, "work/out"), 0o755)
	}
	os.Symlink(hiddenDir+"/work", seenDir+"/to-hidden")
	os.Symlink(seenDir+"/work", hiddenDir+"/to-seen")
	os.WriteFile(hiddenDir+"/file", nil, 0o644)
	t.Setenv("HOME", t.TempDir())
	const cwd = "overlay"
	for _, c := range []struct {
		name, at string
		args     []string
		dir      string   // where the command starts
		shares   []string // GUEST, with what it is
	}{
		{"as it is", seenDir + "/work", nil, seenDir + "/work", nil},
		{"hidden", hiddenDir + "/work", nil, hiddenDir + "/work", []string{hiddenDir + "/work " + cwd}},
		{"a link to what is hidden", seenDir + "/to-hidden", nil, seenDir + "/to-hidden", []string{hiddenDir + "/work " + cwd}},
		{"a hidden link", hiddenDir + "/to-seen", nil, seenDir + "/work", nil},
		{"writable", hiddenDir + "/work", []string{"--rw", "."}, hiddenDir + "/work", []string{hiddenDir + "/work rw"}},
		{"writable by a hidden link", hiddenDir + "/to-seen", []string{"--rw", "."}, seenDir + "/work", []string{seenDir + "/work rw"}},
		{"writable by a link", seenDir + "/to-hidden", []string{"--rw", "."}, seenDir + "/to-hidden", []string{hiddenDir + "/work rw"}},
		{"above", seenDir + "/to-hidden", []string{"--rw", ".."}, seenDir + "/to-hidden", []string{hiddenDir + " rw"}},
		{"below", hiddenDir + "/work", []string{"--rw", "out", "--rw", "./out/"}, hiddenDir + "/work", []string{hiddenDir + "/work/out rw", hiddenDir + "/work " + cwd}},
		{"relative", hiddenDir, []string{"--cwd", "work/out"}, hiddenDir + "/work/out", []string{hiddenDir + "/work/out " + cwd}},
		{"relative, up", seenDir + "/to-hidden", []string{"--cwd", "../work"}, hiddenDir + "/work", []string{hiddenDir + "/work " + cwd}},
		{"given", seenDir, []string{"--cwd", hiddenDir + "/work"}, hiddenDir + "/work", []string{hiddenDir + "/work " + cwd}},
		{"of the guest", seenDir, []string{"--cwd", "/proc/sys"}, "/proc/sys", nil},
		{"that is not here, hidden", hiddenDir, []string{"--cwd", "nope"}, hiddenDir + "/nope", nil},
		{"that is none", hiddenDir, []string{"--cwd", "file"}, hiddenDir + "/file", nil},
		{"that is not here", seenDir, []string{"--cwd", "/only/there"}, "/only/there", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(c.at)
			f, args := runWith(t, append(c.args, "--", "true")...)
			s, err := f.session(t.Context(), args)
			if err != nil {
				t.Fatal(err)
			}
			var shares []string
			for _, m := range s.Config.Shares {
				kind := " rw"
				if m.Overlay {
					kind = " " + cwd
				}
				shares = append(shares, m.Guest+kind)
			}
			if s.Exec.Dir != c.dir || !slices.Equal(shares, c.shares) {
				t.Errorf("it starts in %s with %v, want %s with %v", s.Exec.Dir, shares, c.dir, c.shares)
			}
		})
	}
	for want, line := range map[string][]string{
		"--rw /": {"--rw", "/"}, "an absolute path": {"--root", seenDir, "--cwd", "work"},
		"--rw nope: no such file": {"--rw", "nope"}, "file: not a directory": {"--rw", hiddenDir + "/file"},
		"both to be": {"--rw", hiddenDir, "--share", seenDir + ":" + hiddenDir},
	} {
		f, args := runWith(t, append(line, "--", "true")...)
		if _, err := f.session(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", line, err, want)
		}
	}
}
