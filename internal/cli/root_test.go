package cli

import (
	"bytes"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommandOf has each command made by its name, and say of itself what it says
// beside all others.
func TestCommandOf(t *testing.T) {
	usage := func(root *cobra.Command, name string) string {
		cmd, _, err := root.Find([]string{name})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var out bytes.Buffer
		cmd.SetOut(&out)
		if err := cmd.Help(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return cmd.CommandPath() + out.String()
	}
	all := Command()
	for _, c := range commands() {
		if got := c.make().Name(); got != c.name {
			t.Errorf("%s is called %s", c.name, got)
		}
		one := commandOf([]string{c.name, "--help"})
		if n := len(one.Commands()); n != 1 {
			t.Errorf("%s: %d commands", c.name, n)
		}
		if got, want := usage(one, c.name), usage(all, c.name); got != want {
			t.Errorf("%s says %s\nand not %s", c.name, got, want)
		}
	}
	for _, args := range [][]string{nil, {"--help"}, {"help", "run"}, {"completion", "bash"}, {"nothing"}, {"--version"}} {
		if got, want := len(commandOf(args).Commands()), len(all.Commands()); got != want {
			t.Errorf("%q: %d commands of %d", args, got, want)
		}
	}
}
