package machine

import (
	"errors"
	"fmt"
	"testing"

	"vmm/kvm"
	"vmm/machine/engine"
)

// TestEngines chooses an engine on all kinds of host: KVM is there, is not, or may not be
// used; and the software engine works or does not.
func TestEngines(t *testing.T) {
	absent := fmt.Errorf("no device: %w", kvm.ErrAbsent)
	broken := errors.New("broken")
	for _, c := range []struct {
		e             Engine
		kvm, software error
		want          Engine
		err           error // that errors.Is finds
	}{
		{"", nil, nil, KVMEngine, nil},
		{"", absent, nil, SoftwareEngine, nil},
		{AutoEngine, nil, broken, KVMEngine, nil},
		{AutoEngine, absent, nil, SoftwareEngine, nil},
		{AutoEngine, absent, broken, SoftwareEngine, broken},
		{AutoEngine, absent, broken, SoftwareEngine, kvm.ErrAbsent},
		{AutoEngine, kvm.ErrDenied, nil, KVMEngine, kvm.ErrDenied},
		{KVMEngine, nil, nil, KVMEngine, nil},
		{KVMEngine, absent, nil, KVMEngine, kvm.ErrAbsent},
		{SoftwareEngine, nil, nil, SoftwareEngine, nil},
		{SoftwareEngine, absent, nil, SoftwareEngine, nil},
		{SoftwareEngine, nil, broken, SoftwareEngine, broken},
	} {
		opener := func(err error) func() (engine.System, error) {
			return func() (engine.System, error) { return nil, err }
		}
		if _, got, err := c.e.open(opener(c.kvm), opener(c.software)); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q, KVM %v, software %v: %q, %v; not %q, %v", c.e, c.kvm, c.software, got, err, c.want, c.err)
		}
	}
}
