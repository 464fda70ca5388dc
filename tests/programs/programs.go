// Package programs builds the programs that tests run.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Built is the environment variable that names a directory of programs that were
// built elsewhere, for a machine without Go.
const Built = "VMM_TEST_PROGRAMS"

// Build makes a program of this module as make does, without what only debuggers
// need: guests keep it in memory. It is dir/name, or where programs were built already.
func Build(dir, name, pkg string) (string, error) {
	if built := os.Getenv(Built); built != "" {
		return filepath.Join(built, name), nil
	}
	path := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}
