package machine

import (
	"errors"
	"testing"
)

// TestOpening has one machine at most get an engine, and nobody one that is closed.
func TestOpening(t *testing.T) {
	var none *Opening
	if err := none.Close(); err != nil {
		t.Error(err)
	}
	o := SoftwareEngine.Begin("")
	made, err := o.take()
	if err != nil {
		t.Skipf("no software engine: %v", err)
	}
	defer made.engine.Close()
	defer made.vm.Close()
	if made.kind != SoftwareEngine || made.interpreted {
		t.Errorf("made %+v", made)
	}
	if _, err := o.take(); !errors.Is(err, errTaken) {
		t.Errorf("taken twice: %v", err)
	}
	if err := o.Close(); err != nil { // it is the machine's
		t.Error(err)
	}
	o = SoftwareEngine.Begin("")
	for range 2 {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := New(Config{Opening: o}); err == nil {
		t.Error("a machine without a kernel")
	}
	if _, err := o.take(); !errors.Is(err, errTaken) {
		t.Errorf("taken after Close: %v", err)
	}
}
