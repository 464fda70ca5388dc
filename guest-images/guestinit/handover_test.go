package guestinit

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tree makes a directory of files, and of links where the content begins with "->".
func tree(t *testing.T, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(content, "->"); ok && err == nil {
			err = os.Symlink(target, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// TestGiveMachineID: a guest has an identity of its own unless its image has one.
func TestGiveMachineID(t *testing.T) {
	const given = "0123456789abcdef0123456789abcdef\n"
	fresh := regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`)
	for name, c := range map[string]struct {
		files map[string]string
		keeps bool
	}{
		"missing":       {files: map[string]string{"etc/x": ""}},
		"empty":         {files: map[string]string{machineID: ""}},
		"uninitialized": {files: map[string]string{machineID: "uninitialized\n"}},
		"a dead link":   {files: map[string]string{machineID: "->/run/machine-id"}},
		"its own":       {files: map[string]string{machineID: given}, keeps: true},
	} {
		root := tree(t, c.files)
		if err := giveMachineID(root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b, err := root.ReadFile(machineID)
		if err != nil || c.keeps != (string(b) == given) || !c.keeps && !fresh.Match(b) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// TestConsoleWithoutUdev: systemd has a login on the console where nobody tells it of devices.
func TestConsoleWithoutUdev(t *testing.T) {
	const units = "usr/lib/systemd/"
	systemd := []string{units + "system/console-getty.service", units + "system-generators/systemd-getty-generator"}
	for name, c := range map[string]struct {
		has  []string
		want bool
	}{
		"systemd":          {has: systemd, want: true},
		"with udev":        {has: append(slices.Clone(systemd), units+"systemd-udevd")},
		"without a getty":  {has: systemd[1:]},
		"no systemd there": {has: []string{"bin/sh"}},
	} {
		files := map[string]string{}
		for _, f := range c.has {
			files[f] = "->/usr/bin/elsewhere" // as udev's is, which leads nowhere in the root that is made
		}
		root := tree(t, files)
		if err := consoleWithoutUdev(root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		masked, _ := root.Readlink("run/systemd/system-generators/systemd-getty-generator")
		wanted, _ := root.Readlink("run/systemd/system/getty.target.wants/console-getty.service")
		if got := masked == "/dev/null" && wanted == "/"+systemd[0]; got != c.want {
			t.Errorf("%s: the generator is %q, the login %q", name, masked, wanted)
		}
	}
}

// TestFindInit: what an image says to be its init, or what it has.
func TestFindInit(t *testing.T) {
	if path, argv, err := (&Init{Argv: []string{"/bin/sh", "-c", "x"}}).find(); err != nil || path != "/bin/sh" || len(argv) != 3 {
		t.Errorf("%q, %q, %v", path, argv, err)
	}
	if _, _, err := (&Init{Argv: []string{"/none"}}).find(); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("an init that is not there: %v", err)
	}
	was := InitPrograms
	defer func() { InitPrograms = was }()
	InitPrograms = []string{"/none", "/bin/sh"}
	if path, argv, err := (&Init{}).find(); err != nil || path != "/bin/sh" || !slices.Equal(argv, []string{"/bin/sh"}) {
		t.Errorf("%q, %q, %v", path, argv, err)
	}
	InitPrograms = InitPrograms[:1]
	if _, _, err := (&Init{}).find(); err == nil {
		t.Error("an image without an init has one")
	}
}
