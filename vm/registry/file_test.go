package registry

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmm/vm/api"
)

// odd puts at a path what no file of a VM is.
var odd = map[string]func(path, elsewhere string) error{
	"link":           func(path, elsewhere string) error { return os.Symlink(elsewhere, path) },
	"link that ends": func(path, _ string) error { return os.Symlink("nowhere", path) },
	"pipe":           func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
	"directory":      func(path, _ string) error { return os.Mkdir(path, 0o700) },
}

// TestOddFiles has the process of a VM leave in its directory what leads elsewhere, or nowhere, in the place
// of each file that others open.
func TestOddFiles(t *testing.T) {
	for what, put := range odd {
		for _, name := range []string{lockFile, infoFile, infoFile + ".new", outputFile, consoleFile} {
			t.Run(what+" as "+name, func(t *testing.T) {
				r := temporary(t)
				e := begin(t, r, "a", true)
				secret := filepath.Join(t.TempDir(), "secret")
				if err := os.WriteFile(secret, []byte("before"), 0o600); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(e.Path(), name)
				os.Remove(path)
				if err := put(path, secret); err != nil {
					t.Fatal(err)
				}
				if f, err := Open(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND); err == nil {
					f.Close()
					t.Error("it is opened")
				}
				// Whatever becomes of the VM itself, all come back.
				e.Restarting(1, "text of a guest")
				r.Look("a")
				r.List()
				e.End(0, "text of a guest")
				r.Look("a")
				r.Supervised(api.VM{Name: "a", Supervisor: os.Getpid()})
				r.Remove("a")
				if b, err := os.ReadFile(secret); err != nil || string(b) != "before" {
					t.Errorf("a file elsewhere is written to: %s, %v", b, err)
				}
				if _, err := os.Lstat(filepath.Join(e.Path(), "nowhere")); err == nil {
					t.Error("a file is made behind a link")
				}
			})
		}
	}
}

// TestOddInfo has the process of a VM write of itself what is not so.
func TestOddInfo(t *testing.T) {
	r := temporary(t)
	for _, name := range []string{"a", "victim"} {
		defer begin(t, r, name, true).Remove()
	}
	b, err := json.Marshal(api.VM{Name: "victim", State: "\x1b[2J", Detached: true})
	if err == nil {
		err = os.WriteFile(filepath.Join(r.path("a"), infoFile), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if vm, err := r.Find("a"); err != nil || vm.Name != "a" || vm.State != api.Running {
		t.Errorf("a VM that calls itself victim: %q, %q, %v", vm.Name, vm.State, err)
	}
	// The lock of another VM does not make its supervisor that of this one.
	lock := filepath.Join(r.path("a"), lockFile)
	if err := errors.Join(os.Remove(lock), os.Symlink(filepath.Join(r.path("victim"), lockFile), lock)); err != nil {
		t.Fatal(err)
	}
	if r.Supervised(api.VM{Name: "a", Supervisor: os.Getpid()}) {
		t.Error("who holds another VM's lock counts as the supervisor")
	}
}

// TestBroken has the process of a VM leave nothing readable of itself: the VM is listed all the same, until it has ended and
// was removed.
func TestBroken(t *testing.T) {
	garbage := map[string]func(path, elsewhere string) error{
		"garbage": func(path, _ string) error { return os.WriteFile(path, []byte("{\x1b"), 0o600) },
		"nothing": func(path, _ string) error { return os.WriteFile(path, nil, 0o600) },
		"endless": func(path, _ string) error {
			return os.WriteFile(path, append([]byte(`{"name":"`), make([]byte, maxInfo)...), 0o600)
		},
	}
	maps.Copy(garbage, odd)
	for what, put := range garbage {
		t.Run(what, func(t *testing.T) {
			r := temporary(t)
			e := begin(t, r, "a", true)
			info := filepath.Join(r.path("a"), infoFile)
			if err := errors.Join(os.Remove(info), put(info, "/etc/passwd")); err != nil {
				t.Fatal(err)
			}
			list, err := r.List()
			if err != nil || len(list) != 1 || list[0].Name != "a" || list[0].State != api.Broken || list[0].PID != os.Getpid() || list[0].Detail == "" {
				t.Fatalf("%+v, %v", list, err)
			}
			if _, err := r.FindRunning("a"); !errors.Is(err, ErrNotRunning) {
				t.Errorf("%v", err)
			}
			if Over(api.VM{Name: "a"}, list[0]) {
				t.Error("it counts as over")
			}
			if err := r.Remove("a"); !errors.Is(err, ErrRunning) {
				t.Errorf("it was removed: %v", err)
			}
			e.lock.Close() // as when it is killed
			if vm, err := r.Look("a"); err != nil || vm.State != api.Exited || !vm.Detached {
				t.Errorf("ended: %+v, %v", vm, err)
			}
			if err := r.Remove("a"); err != nil {
				t.Error(err)
			}
			if list, err := r.List(); err != nil || len(list) != 0 {
				t.Errorf("removed: %+v, %v", list, err)
			}
		})
	}
}
