package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/internal/cli"
)

// TestPages holds that each command has a page, with each of its flags, and that nothing
// but SOURCE_DATE_EPOCH dates it.
func TestPages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	var check func(c *cobra.Command)
	pages := 0
	check = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		pages++
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		page := string(data)
		if !strings.Contains(page, `"Jan 1970"`) || strings.Contains(page, ".SH HISTORY") {
			t.Errorf("%s is dated by something else than SOURCE_DATE_EPOCH: %q", name, page[:min(100, len(page))])
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(page, "--"+f.Name+`\fP`) {
				t.Errorf("%s has no --%s", name, f.Name)
			}
		})
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(cli.Command())
	if pages < 30 {
		t.Errorf("%d commands were looked at, of at least 30", pages)
	}
}
