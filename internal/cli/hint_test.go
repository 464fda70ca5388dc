package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	guestimages "vmm/guest-images"
	"vmm/guest-images/agent"
	"vmm/kvm"
	"vmm/storage/image"
	"vmm/storage/qcow2"
)

// TestHints: what the library says, the command line says with its flags.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{image.ErrForeignBacking, "backing=any"}, {qcow2.ErrMarkedCorrupt, "check --repair"}, {&agent.MismatchError{}, "vmm agent --install"},
		{guestimages.ErrNoApt, "--kernel /"}, {kvm.ErrDenied, "--engine software"},
	} {
		wrapped := fmt.Errorf("disk: %w", c.err)
		if got := withHint(wrapped); !errors.Is(got, c.err) || !strings.HasPrefix(got.Error(), wrapped.Error()) || !strings.Contains(got.Error(), c.want) {
			t.Errorf("%v: %v", wrapped, got)
		}
	}
	if got := withHint(qcow2.ErrCorrupt); got != qcow2.ErrCorrupt {
		t.Errorf("%v", got)
	}
	if got := hostKernel(t.TempDir()); !strings.Contains(got, "/lib/modules/VERSION") {
		t.Errorf("without a kernel: %s", got)
	}
}
