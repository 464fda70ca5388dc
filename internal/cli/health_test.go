package cli

import (
	"reflect"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"vmm/vm"
)

// TestHealthFlags: an image's check, and what flags change of it.
func TestHealthFlags(t *testing.T) {
	image := &v1.HealthConfig{Test: []string{"CMD", "probe", "x"}, Interval: time.Minute, Retries: 5}
	for _, c := range []struct {
		image *v1.HealthConfig
		flags []string
		want  *vm.HealthCheck
		bad   bool
	}{
		{nil, nil, nil, false},
		{&v1.HealthConfig{Test: []string{"NONE"}}, nil, nil, false},
		{image, nil, &vm.HealthCheck{Command: []string{"probe", "x"}, Interval: time.Minute, Retries: 5}, false},
		{&v1.HealthConfig{Test: []string{"CMD-SHELL", "a && b"}}, nil, &vm.HealthCheck{Command: []string{"/bin/sh", "-c", "a && b"}}, false},
		{image, []string{"--no-healthcheck"}, nil, false},
		{image, []string{"--health-cmd", "true", "--health-retries", "1"}, &vm.HealthCheck{Command: []string{"/bin/sh", "-c", "true"}, Interval: time.Minute, Retries: 1}, false},
		{nil, []string{"--health-cmd", "true", "--health-interval", "2s", "--health-timeout", "3s", "--health-start-period", "4s"},
			&vm.HealthCheck{Command: []string{"/bin/sh", "-c", "true"}, Interval: 2 * time.Second, Timeout: 3 * time.Second, StartPeriod: 4 * time.Second}, false},
		{nil, []string{"--health-interval", "2s"}, nil, true},
		{image, []string{"--no-healthcheck", "--health-interval", "2s"}, nil, true},
		{image, []string{"--health-interval", "-2s"}, nil, true},
		{image, []string{"--health-timeout", "-2s"}, nil, true},
		{image, []string{"--health-start-period", "-2s"}, nil, true},
		{image, []string{"--health-retries", "-1"}, nil, true},
		{&v1.HealthConfig{Test: []string{"CMD"}}, nil, nil, true},
		{&v1.HealthConfig{Test: []string{"ODD", "x"}}, nil, nil, true},
	} {
		var f healthFlags
		fl := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.add(fl)
		if err := fl.Parse(c.flags); err != nil {
			t.Fatal(err)
		}
		var config vm.Config
		var err error
		if config.Health, err = imageHealth(c.image); err == nil {
			err = f.apply(&config, fl)
		}
		if c.bad {
			config.Health = nil
		}
		if (err != nil) != c.bad || !reflect.DeepEqual(config.Health, c.want) {
			t.Errorf("%+v, %q: %+v, %v", c.image, c.flags, config.Health, err)
		}
	}
}
