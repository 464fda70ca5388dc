package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/internal/tomlfile"
)

// commandKey is what a configuration file calls the command; all other keys are
// the names of vmm run's flags.
const commandKey = "command"

// loadConfig sets the flags that a file names and the command line does not, and
// returns the file's command.
func loadConfig(path string, fl *pflag.FlagSet) ([]string, error) {
	var values map[string]any
	if err := tomlfile.Decode(path, &values); err != nil {
		return nil, err
	}
	var command []string
	for key, v := range values {
		list, err := texts(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		if key == commandKey {
			command = list
			continue
		}
		flag := fl.Lookup(key)
		if flag == nil || slices.Contains(notInFile, key) {
			return nil, fmt.Errorf("%s: %s: vmm run has no such flag", path, key)
		}
		if flag.Changed {
			continue
		}
		for _, text := range list {
			if err := fl.Set(key, text); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return command, nil
}

// notInFile are flags that mean nothing in a file.
var notInFile = []string{"config", "help"}

// texts is a value, or a list of them, as flags take them.
func texts(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case bool, int64, float64:
		return []string{fmt.Sprint(v)}, nil
	case []any:
		var out []string
		for _, e := range v {
			t, err := texts(e)
			if err != nil {
				return nil, err
			}
			out = append(out, t...)
		}
		return out, nil
	}
	return nil, errors.New("a text, a number, true or false, or a list of them")
}

// writeConfig writes the flags that were given and the command as such a file.
func writeConfig(w io.Writer, fl *pflag.FlagSet, command []string) error {
	values := map[string]any{}
	fl.Visit(func(f *pflag.Flag) {
		if slices.Contains(notInFile, f.Name) {
			return
		}
		switch list := f.Value.(type) {
		case pflag.SliceValue:
			values[f.Name] = list.GetSlice()
		default:
			values[f.Name] = f.Value.String()
			if f.Value.Type() == "bool" {
				values[f.Name] = f.Value.String() == "true"
			}
		}
	})
	if len(command) > 0 {
		values[commandKey] = command
	}
	return toml.NewEncoder(w).Encode(values)
}

// configCommand is vmm config.
func configCommand() *cobra.Command {
	f := newRunFlags()
	cmd := &cobra.Command{
		Use:   "config [flags] [--] [COMMAND [ARGUMENT...]]",
		Short: "Write flags of vmm run as a file for vmm run --config",
		Long: "config checks flags of vmm run and writes them as a TOML file, whose keys are the flags'\n" +
			"names; \"command\" is the command. Flags beside --config win over those of the file.",
		Example: "  vmm config -m 1G --share .:/work -- make check > vm.toml\n  vmm run --config vm.toml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.read(cmd.Flags(), args); err != nil {
				return err
			}
			return writeConfig(cmd.OutOrStdout(), cmd.Flags(), f.command)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// read takes the command line, and the file of --config.
func (f *runFlags) read(fl *pflag.FlagSet, args []string) error {
	f.command = args
	if f.config != "" {
		command, err := loadConfig(f.config, fl)
		if err != nil {
			return &exitError{statusUsage, fmt.Errorf("--config: %w", err)}
		}
		if len(args) == 0 {
			f.command = command
		}
	}
	f.named, f.consoleGiven = fl.Changed("name"), fl.Changed("console")
	return f.check()
}
