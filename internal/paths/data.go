package paths

import (
	"errors"
	"os"
	"path/filepath"
)

// ErrNoHome is the error where a user has no directory for data.
var ErrNoHome = errors.New("neither XDG_DATA_HOME nor HOME is set")

// Data is where a user's data are that vmm keeps: $XDG_DATA_HOME/vmm, or ~/.local/share/vmm. It
// need not be there. The error is ErrNoHome.
func Data() (string, error) {
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // others are to be ignored (XDG Base Directory Specification)
		home := os.Getenv("HOME")
		if home == "" {
			return "", ErrNoHome
		}
		data = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(data, "vmm"), nil
}
