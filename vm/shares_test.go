package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmm/storage/share"
)

// TestKernelFiles: the host's kernel is no directory to share, by whatever name.
func TestKernelFiles(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc/self", link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/proc", "/proc/self", "/proc/self/root/proc", "/sys", "/sys/kernel", "/dev", "/dev/../sys", link} {
		for _, o := range []share.Options{{}, {ReadOnly: true}} {
			if err := new(shares).add("tag", dir, o, nil); !errors.Is(err, ErrKernelFiles) {
				t.Errorf("%s: %v", dir, err)
			}
		}
	}
	if err := checkShare(t.TempDir()); err != nil {
		t.Error(err)
	}
}

// TestSharesSeen: a share that the guest could not see is refused before anything boots.
func TestSharesSeen(t *testing.T) {
	for _, c := range []struct {
		at   []string // Guest
		want string   // in the error; "" is none
	}{
		{at: []string{"/x", "/y", "/x/y", "/tmp", "/run/x", "/dev/shm"}},
		{at: []string{"/x", "/x"}, want: "a0 and a1 are both to be /x"},
		{at: []string{"/x/in", "/y", "/x/./in/"}, want: "a0 and a2 are both to be /x/in"},
		{at: []string{"/x", "/y/../x"}, want: "both to be /x"},
		{at: []string{"/"}, want: "the guest's root"},
		{at: []string{"/x/.."}, want: "the guest's root"},
		{at: []string{"x"}, want: "an absolute path"},
		{at: []string{"/proc"}, want: "/proc of its own"},
		{at: []string{"/sys/kernel"}, want: "/sys of its own"},
		{at: []string{"/dev/"}, want: "/dev of its own"},
	} {
		var cfg Config
		for i, at := range c.at {
			cfg.Shares = append(cfg.Shares, Share{Host: fmt.Sprintf("a%d", i), Guest: at})
		}
		err := cfg.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("shares at %v: %v, want %q", c.at, err, c.want)
		}
	}
}

// TestHidden holds which of the hidden paths lie in a shared directory.
func TestHidden(t *testing.T) {
	list := []string{"/home", "/home/me/.ssh", "/home/me/.config/gh", "/etc/shadow", "/tmp"}
	for dir, want := range map[string][]string{
		"/": {"home", "home/me/.ssh", "home/me/.config/gh", "etc/shadow", "tmp"}, "/home/me": {".ssh", ".config/gh"},
		"/home/me/work": nil, "/home/me/.ssh": nil, "/home/me/.ssh/in": nil, "/home/me/.config": {"gh"}, "/etc": {"shadow"}, "/etcetera": nil, "/tmp": nil,
	} {
		if got := hidden(dir, list); !slices.Equal(got, want) {
			t.Errorf("in %s: %q, want %q", dir, got, want)
		}
	}
}
