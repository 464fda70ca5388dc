package warm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmm/machine"
	"vmm/vm"
)

// TestGiveUp keeps the reason why a snapshot could not be used, for a day.
func TestGiveUp(t *testing.T) {
	w := &Snapshot{Dir: filepath.Join(t.TempDir(), "warm", "key")}
	if _, ok := w.GivenUp(); ok {
		t.Error("given up before it was tried")
	}
	os.MkdirAll(w.Dir, 0o700)
	os.WriteFile(filepath.Join(w.Dir, "memory"), []byte("x"), 0o600)
	w.GiveUp(errors.New("no XSAVE here"))
	if why, ok := w.GivenUp(); !ok || why != "no XSAVE here" {
		t.Errorf("given up: %v, %q", ok, why)
	}
	if _, err := os.Stat(filepath.Join(w.Dir, "memory")); err == nil {
		t.Error("the snapshot is still there")
	}
	if _, err := w.New(vm.Config{Root: &vm.Root{Path: "/"}}); err == nil {
		t.Error("there is a snapshot to go on from")
	}
	if _, err := w.New(vm.Config{Root: &vm.Root{Path: "/"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the damaged one is still there: %v", err)
	}
	w.GiveUp(errors.New("again"))
	old := time.Now().Add(-2 * unusableFor)
	os.Chtimes(filepath.Join(w.Dir, unusable), old, old)
	if _, ok := w.GivenUp(); ok {
		t.Error("given up for ever")
	}
}

// TestKinds tells VMs apart that cannot go on from each other's snapshots.
func TestKinds(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	base := vm.Config{Boot: vm.Boot{Kernel: kernel}, Root: &vm.Root{Path: "/"}}
	find := func(change func(*vm.Config)) string {
		c := base
		change(&c)
		c = c.WithDefaults()
		s, err := store.Find(&c)
		if err != nil {
			return ""
		}
		return s.Name
	}
	same := find(func(*vm.Config) {})
	if same == "" {
		t.Fatal("a VM for commands cannot start warm")
	}
	for name, change := range map[string]func(*vm.Config){
		"its name": func(c *vm.Config) { c.Name = "other" }, "what it publishes": func(c *vm.Config) { c.Vsock = "/x" },
		"the name of the engine": func(c *vm.Config) {
			if e, err := machine.AutoEngine.Choose(vm.HostNotes()); err == nil {
				c.Engine = e
			}
		},
		"what it hides": func(c *vm.Config) { c.Hide = []string{"/home/a"} }, "limits": func(c *vm.Config) { c.Limits.Memory = 1 << 30 },
	} {
		if got := find(change); got != same {
			t.Errorf("%s makes it another kind", name)
		}
	}
	for name, change := range map[string]func(*vm.Config){
		"CPUs": func(c *vm.Config) { c.CPUs = 2 }, "memory": func(c *vm.Config) { c.Memory = 1 << 30 }, "arguments": func(c *vm.Config) { c.Boot.Args = []string{"x"} },
		"networks": func(c *vm.Config) { c.Nets = vm.Nets{vm.None{}} }, "shares": func(c *vm.Config) { c.Shares = []vm.Share{{Host: "/", Guest: "/x"}} },
		"owner": func(c *vm.Config) { c.ShareOwner.UID = 1 }, "root": func(c *vm.Config) { c.Root = &vm.Root{Path: t.TempDir()} },
		"engine": func(c *vm.Config) {
			c.Engine = machine.SoftwareEngine
			if e, _ := machine.AutoEngine.Choose(vm.HostNotes()); e == c.Engine {
				c.Engine = machine.KVMEngine
			}
		},
	} {
		if got := find(change); got == same || got == "" {
			t.Errorf("%s: the same kind, %q", name, got)
		}
	}
	for name, change := range map[string]func(*vm.Config){
		"no commands": func(c *vm.Config) { c.Root = nil }, "a disk": func(c *vm.Config) { c.Disks = []vm.Disk{{Path: "x"}} }, "modules": func(c *vm.Config) { c.Boot.Modules = "/m" },
		"huge pages": func(c *vm.Config) { c.HugePages = true }, "a switch": func(c *vm.Config) { c.Nets = vm.Nets{vm.Switch{Name: "a"}} },
		"persistent memory": func(c *vm.Config) { c.Pmems = []vm.Pmem{{Path: "x"}} },
		"a port":            func(c *vm.Config) { c.Ports = []vm.Port{{Name: "a"}} }, "a root that is a disk": func(c *vm.Config) { c.Root = &vm.Root{Path: kernel} },
	} {
		if got := find(change); got != "" {
			t.Errorf("%s: can start warm as %s", name, got)
		}
	}
}

// TestImageKinds tells container images apart by what they hold, whatever they are called.
func TestImageKinds(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	store, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	kernel := file("x")
	find := func(image vm.ImageRoot) (string, error) {
		c := vm.Config{Boot: vm.Boot{Kernel: kernel}, Root: &vm.Root{Image: &image}}
		c = c.WithDefaults()
		s, err := store.Find(&c)
		if err != nil {
			return "", err
		}
		return s.Name, nil
	}
	base := vm.ImageRoot{Name: "a", Segments: []string{file("meta"), file("data")}}
	same, err := find(base)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*vm.ImageRoot)
		same   bool
	}{
		"its name":     {func(i *vm.ImageRoot) { i.Name = "b" }, true},
		"a layer":      {func(i *vm.ImageRoot) { i.Segments = append(i.Segments[:1:1], file("other")) }, false},
		"their order":  {func(i *vm.ImageRoot) { i.Segments = []string{i.Segments[1], i.Segments[0]} }, false},
		"read-only":    {func(i *vm.ImageRoot) { i.ReadOnly = true }, false},
		"its defaults": {func(i *vm.ImageRoot) { i.Defaults.User = "nobody" }, false},
		"its device":   {func(i *vm.ImageRoot) { i.Device = vm.ImageDisk }, false},
	} {
		image := base
		c.change(&image)
		if got, err := find(image); err != nil || (got == same) != c.same {
			t.Errorf("%s: the same kind: %v, %v", name, got == same, err)
		}
	}
	image := base
	image.Disk = &vm.Disk{Path: "x"}
	if got, err := find(image); err == nil {
		t.Errorf("one that keeps what is written can start warm as %s", got)
	}
	image = base
	image.Segments = append(image.Segments, filepath.Join(t.TempDir(), "gone"))
	if _, err := find(image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a layer that is gone: %v", err)
	}
}
