// Package paths makes paths that mean the same from anywhere.
package paths

import "path/filepath"

// Real makes a path absolute and free of symbolic links. What it names must be there.
func Real(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
