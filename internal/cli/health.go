package cli

import (
	"errors"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"vmm/vm"
)

// healthFlags are the flags of vmm run for a health check.
type healthFlags struct {
	command string
	check   vm.HealthCheck
	none    bool
}

func (f *healthFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.command, "health-cmd", "", "a shell's `COMMAND` in the guest that says by status 0 that all is well; vmm ps shows it; in the place of the image's")
	fl.DurationVar(&f.check.Interval, "health-interval", 0, "the time between two of these; 30s if neither this nor the image says more")
	fl.DurationVar(&f.check.Timeout, "health-timeout", 0, "how long one may take; 30s if neither this nor the image says more")
	fl.DurationVar(&f.check.StartPeriod, "health-start-period", 0, "how long one may fail at first")
	fl.IntVar(&f.check.Retries, "health-retries", 0, "`NUMBER` of failures in a row that make the VM unhealthy; 3 if neither this nor the image says more")
	fl.BoolVar(&f.none, "no-healthcheck", false, "leave the image's health check out")
}

// healthFlagNames are the flags that say more of a check.
var healthFlagNames = []string{"health-cmd", "health-interval", "health-timeout", "health-start-period", "health-retries"}

// errHealthTest is the error for an image's check that docker does not define.
var errHealthTest = errors.New("its health check is neither CMD nor CMD-SHELL")

// apply changes the health check of a VM, which may be nil, as the flags say.
func (f *healthFlags) apply(c *vm.Config, fl *pflag.FlagSet) error {
	given := ""
	for _, name := range healthFlagNames {
		if fl.Changed(name) {
			given = name
		}
	}
	if f.none {
		if given != "" {
			return usage("--no-healthcheck and --%s: there is one or none", given)
		}
		c.Health = nil
		return nil
	}
	if given == "" {
		return nil
	}
	var check vm.HealthCheck
	if c.Health != nil {
		check = *c.Health
	}
	if f.command != "" {
		check.Command = shellCommand(f.command)
	}
	if len(check.Command) == 0 {
		return usage("--%s: there is no health check: --health-cmd", given)
	}
	for _, v := range []struct {
		flag   string
		to     *time.Duration
		wanted time.Duration
	}{{"health-interval", &check.Interval, f.check.Interval}, {"health-timeout", &check.Timeout, f.check.Timeout}, {"health-start-period", &check.StartPeriod, f.check.StartPeriod}} {
		if v.wanted < 0 {
			return usage("--%s %v: a time cannot be negative", v.flag, v.wanted)
		}
		if fl.Changed(v.flag) {
			*v.to = v.wanted
		}
	}
	if f.check.Retries < 0 {
		return usage("--health-retries %d: a number cannot be negative", f.check.Retries)
	}
	if fl.Changed("health-retries") {
		check.Retries = f.check.Retries
	}
	c.Health = &check
	return nil
}

// shellCommand is how docker has a shell run a text.
func shellCommand(text string) []string { return []string{"/bin/sh", "-c", text} }

// imageHealth is the check of an image; nil if it has none.
func imageHealth(image *v1.HealthConfig) (*vm.HealthCheck, error) {
	if image == nil || len(image.Test) == 0 || image.Test[0] == "NONE" {
		return nil, nil
	}
	h := &vm.HealthCheck{Interval: image.Interval, Timeout: image.Timeout, StartPeriod: image.StartPeriod, Retries: image.Retries}
	switch test := image.Test; {
	case test[0] == "CMD" && len(test) > 1:
		h.Command = test[1:]
	case test[0] == "CMD-SHELL" && len(test) == 2:
		h.Command = shellCommand(test[1])
	default:
		return nil, errHealthTest
	}
	return h, nil
}
