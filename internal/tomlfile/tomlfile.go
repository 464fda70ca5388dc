// Package tomlfile reads configuration files.
package tomlfile

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/BurntSushi/toml"
)

// Decode reads a TOML file into what to points at. A key that this has no place for
// is an error. Errors name the file, and the line where that can be told.
func Decode(path string, to any) error {
	meta, err := toml.DecodeFile(path, to)
	var parse toml.ParseError
	var file *fs.PathError // which names it
	switch {
	case errors.As(err, &parse):
		return fmt.Errorf("%s:%d: %s", path, parse.Position.Line, parse.Message)
	case errors.As(err, &file):
		return err
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("%s: there is no %q", path, unknown[0])
	}
	return nil
}
