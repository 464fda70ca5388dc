package vm

import (
	"errors"
	"testing"
)

// TestLimits: a VM runs only with the limits that it has, and that it can live with.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		field  string // that is wrong
	}{
		"none":                   {Config{}, ""},
		"enough":                 {Config{Memory: 256 << 20, Limits: Limits{CPUs: 0.5, Memory: 320 << 20, PIDs: 33}}, ""},
		"the guest's memory":     {Config{Memory: 256 << 20, Limits: Limits{Memory: 256 << 20}}, "Limits.Memory"},
		"the default one's":      {Config{Limits: Limits{Memory: 575 << 20}}, "Limits.Memory"},
		"a thread for each CPU":  {Config{CPUs: 4, Limits: Limits{PIDs: 35}}, "Limits.PIDs"},
		"no CPU":                 {Config{Limits: Limits{CPUs: -1}}, "Limits.CPUs"},
		"a device without rates": {Config{Limits: Limits{IO: []IOLimit{{Path: "/"}}}}, "Limits.IO"},
	} {
		var wrong *ConfigError
		if err := c.config.Check(); errors.As(err, &wrong) != (c.field != "") || wrong != nil && wrong.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := Config{Limits: Limits{CPUs: 1}}
	v, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context()); !errors.Is(err, ErrNoGroup) {
		t.Errorf("without a group: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	for name, given := range map[string]*Limits{"saved": nil, "none": {}, "others": {CPUs: 2}} {
		r := &source{vm: saved{Version: savedVersion, Config: c}, trusted: true}
		v, err := r.make(name, &RestoreOptions{Limits: given}, newOptions(nil))
		if err != nil {
			t.Fatal(err)
		}
		want := c.Limits.CPUs
		if given != nil {
			want = given.CPUs
		}
		if got := v.Config().Limits.CPUs; got != want {
			t.Errorf("%s: %v CPUs, want %v", name, got, want)
		}
		v.Close()
	}
}
