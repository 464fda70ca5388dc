// Package software is the engine that needs no /dev/kvm: it executes the guest in
// this process.
package software

import (
	"errors"

	"vmm/machine/engine"
)

// Open returns the engine.
func Open() (engine.System, error) {
	return nil, errors.New("this vmm has no software engine: it is not built yet")
}
