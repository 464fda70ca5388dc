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
	meta, err := decode(path, to)
	if err != nil {
		return err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("%s: there is no %q", path, unknown[0])
	}
	return nil
}

// Values reads all of a TOML file, whatever its keys. Errors are as Decode's.
func Values(path string) (values map[string]any, err error) {
	_, err = decode(path, &values)
	return values, err
}

func decode(path string, to any) (toml.MetaData, error) {
	meta, err := toml.DecodeFile(path, to)
	var parse toml.ParseError
	var file *fs.PathError // which names it
	switch {
	case errors.As(err, &parse):
		err = fmt.Errorf("%s:%d: %s", path, parse.Position.Line, parse.Message)
	case err != nil && !errors.As(err, &file):
		err = fmt.Errorf("%s: %w", path, err)
	}
	return meta, err
}
