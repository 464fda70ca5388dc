package vm

import (
	"errors"
	"testing"
)

// TestImageInit: a guest with an init of its image's is none for commands, and needs the agent.
func TestImageInit(t *testing.T) {
	for name, c := range map[string]struct {
		config          Config
		field           string
		commands, hands bool
	}{
		"for commands":      {config: Config{Root: &Root{Image: &ImageRoot{Segments: []string{"x"}}}}, commands: true},
		"an init":           {config: Config{Root: &Root{Image: &ImageRoot{Segments: []string{"x"}, Init: &Init{}}}}, hands: true},
		"without an agent":  {config: Config{NoAgent: true, Root: &Root{Image: &ImageRoot{Segments: []string{"x"}, Init: &Init{}}}}, hands: true, field: "NoAgent"},
		"an empty program":  {config: Config{Root: &Root{Image: &ImageRoot{Segments: []string{"x"}, Init: &Init{Argv: []string{""}}}}}, hands: true, field: "Root.Image.Init"},
		"a disk that boots": {config: Config{Root: &Root{Path: "x", Boot: true}}},
	} {
		var config *ConfigError
		err := c.config.Check()
		if errors.As(err, &config) != (c.field != "") || config != nil && config.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
		if c.config.ForCommands() != c.commands || c.config.HasImageInit() != c.hands {
			t.Errorf("%s: for commands %v, handed over %v", name, c.config.ForCommands(), c.config.HasImageInit())
		}
	}
}

// TestTmpfs: memory of the guest's is where it is seen, and in the way of nothing that the guest needs.
func TestTmpfs(t *testing.T) {
	for guest, refused := range map[string]bool{
		"/run": false, "/tmp/x": false, "/dev/shm": false, "/processes": false,
		"x": true, "/": true, "/proc": true, "/proc/": true, "/x/../proc/sys": true, "/sys/fs": true, "/dev": true, "/share": true, "/twice": true,
	} {
		err := (&Config{Shares: []Share{{Host: "/srv", Guest: "/share"}},
			Root: &Root{Image: &ImageRoot{Segments: []string{"x"}, Tmpfs: []Tmpfs{{Guest: "/twice"}, {Guest: guest}}}}}).Check()
		var config *ConfigError
		if refused != (err != nil) || refused && (!errors.As(err, &config) || config.Field != "Root.Image.Tmpfs") {
			t.Errorf("%s: %v", guest, err)
		}
	}
}
