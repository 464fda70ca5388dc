package cli

import (
	"errors"
	"fmt"
	"testing"

	"vmm/vm"
)

// TestInFlags: an error about a field names the flag that fills it, if there is one.
func TestInFlags(t *testing.T) {
	for field, want := range map[string]string{
		"CPUs": "--cpus is wrong", "Root.Image.Tmpfs": "--tmpfs is wrong", "Root.Image.Volumes": "the image's VOLUME is wrong", "Root.Image.Device": "is wrong",
	} {
		if got := inFlags(fmt.Errorf("checking: %w", &vm.ConfigError{Field: field, Err: errors.New("is wrong")})); got.Error() != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
}
