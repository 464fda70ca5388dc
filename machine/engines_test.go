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
		interprets    bool
	}{
		{"", nil, nil, KVMEngine, nil, false},
		{"", absent, nil, SoftwareEngine, nil, false},
		{AutoEngine, nil, broken, KVMEngine, nil, false},
		{AutoEngine, absent, nil, SoftwareEngine, nil, false},
		{AutoEngine, absent, broken, SoftwareEngine, broken, false},
		{AutoEngine, absent, broken, SoftwareEngine, kvm.ErrAbsent, false},
		{AutoEngine, kvm.ErrDenied, nil, KVMEngine, kvm.ErrDenied, false},
		{KVMEngine, nil, nil, KVMEngine, nil, false},
		{KVMEngine, absent, nil, KVMEngine, kvm.ErrAbsent, false},
		{SoftwareEngine, nil, nil, SoftwareEngine, nil, false},
		{SoftwareEngine, absent, nil, SoftwareEngine, nil, false},
		{SoftwareEngine, nil, broken, SoftwareEngine, broken, false},
		{AutoEngine, nil, nil, SoftwareEngine, nil, true},
		{AutoEngine, nil, broken, KVMEngine, nil, true},
		{KVMEngine, nil, nil, KVMEngine, nil, true},
	} {
		opener := func(err error) func() (engine.System, error) {
			return func() (engine.System, error) { return noSystem{}, err }
		}
		if _, got, err := c.e.open(opener(c.kvm), opener(c.software), func(engine.System) (bool, error) { return c.interprets, nil }); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q, KVM %v, software %v: %q, %v; not %q, %v", c.e, c.kvm, c.software, got, err, c.want, c.err)
		}
	}
}

// noSystem can be closed.
type noSystem struct{ engine.System }

func (noSystem) Close() error { return nil }
