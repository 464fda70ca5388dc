package cli

import (
	"errors"
	"fmt"

	"vmm/vm/api"
	"vmm/vm/registry"
)

// findVM returns a VM by its name or the number of its process.
func findVM(name string) (api.VM, error) {
	vm, err := registry.User().Find(name)
	return vm, advise(err)
}

// findRunning is findVM for one that runs.
func findRunning(name string) (api.VM, error) {
	vm, err := registry.User().FindRunning(name)
	return vm, advise(err)
}

// advise adds to an error of the registry's what to do about it.
func advise(err error) error {
	var taken *registry.TakenError
	var none *registry.NotFoundError
	switch {
	case errors.As(err, &taken) && taken.Ended:
		return fmt.Errorf("%w: vmm rm %s removes it", err, taken.Name)
	case errors.As(err, &taken):
		return fmt.Errorf("%w: give this one another --name", err)
	case errors.As(err, &none) && len(none.Names) == 0:
		return fmt.Errorf("%w: vmm run -d --name %s starts one", err, none.Name)
	}
	return err
}

// checkName says what is wrong with the name of a VM to be; what is where it was given.
func checkName(what, name string) error {
	if !registry.ValidName(name) {
		return &exitError{statusUsage, fmt.Errorf("%s %q: only letters, digits and dashes, at most 63", what, name)}
	}
	if registry.Reserved(name) {
		return &exitError{statusUsage, fmt.Errorf("%s %s: this name has a meaning of its own", what, name)}
	}
	return nil
}
