// Package programs builds the programs that tests run.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Built is the environment variable that names a directory of programs that were
// built elsewhere, for a machine without Go.
const Built = "VMM_TEST_PROGRAMS"

// Flags are those of go build with which make builds vmm: without what only debuggers
// need, and without HTTP/2, which goes over no control socket.
var Flags = []string{"-trimpath", "-tags", "nethttpomithttp2", "-ldflags", "-s -w -funcalign=16"}

// Probe is vmm with a hook that tries its jail from inside.
const Probe = "vmm-probe"

// ProbeFlags are those of go build that make Probe.
var ProbeFlags = []string{"-tags", "nethttpomithttp2,jailprobe"}

// HostileGuest is a guest that attacks vmm.
const HostileGuest = "hostileguest"

// HostileGuestFlags are those of go build that make HostileGuest.
var HostileGuestFlags = []string{"-ldflags", "-E main.entry"}

// patched makes the dependencies that make builds vmm with, once, and returns their go.mod.
var patched = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "run", "vmm/packaging/patched").Output()
	if err != nil {
		return "", fmt.Errorf("making the patched dependencies: %w\n%s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
})

// Build makes a program of this module as make does, with further flags. It is dir/name, or where programs were built already.
func Build(dir, name, pkg string, flags ...string) (string, error) {
	if built := os.Getenv(Built); built != "" {
		return filepath.Join(built, name), nil
	}
	mod, err := patched()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	c := exec.Command("go", slices.Concat([]string{"build", "-modfile", mod}, Flags, flags, []string{"-o", path, pkg})...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// Init makes the default guest's init and packs it where vmm takes it from when it is
// built next; root is the module's directory.
func Init(root string) error {
	to := filepath.Join(root, "guest-images/embedded")
	built, err := Build(to, "init", "vmm/guest-images/init")
	if err != nil || os.Getenv(Built) != "" {
		return err
	}
	if out, err := exec.Command("go", "run", "vmm/guest-images/pack", built, built+".zst").CombinedOutput(); err != nil {
		return fmt.Errorf("packing %s: %w\n%s", built, err, out)
	}
	return nil
}
