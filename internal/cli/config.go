package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/internal/tomlfile"
	"vmm/vm"
)

// A file for --config is a vm.Config as TOML, with the keys of its JSON, and beside it
// these keys.
const (
	commandKey = "command" // the command and its arguments
	runKey     = "run"     // a table of flags that concern the run, and not the VM
	versionKey = "version" // of the Config; a file without it is of the older form: flags and the command
)

// configFlags are the flags of vmm run whose values are in the Config. All others are in the table.
var configFlags = []string{"append", "boot-entry", "boot-protocol", "console-device", "cpu-limit", "cpu-model", "cpus", "disk", "engine", "hostname", "huge-pages", "initrd", "io-limit",
	"kernel", "label", "memory", "memory-limit", "modules", "name", "nested", "net", "no-agent", "on-enospc", "pids-limit", "pmem", "port", "publish", "root", "rootfs", "rw", "share", "virtio", "vsock"}

// inTable reports whether a flag is in the table: where a Config has no word for what it says, too.
func inTable(f *pflag.Flag) bool {
	if to := f.Value.String(); f.Name == "console" && to != "serial" && to != "none" {
		return false
	}
	return !slices.Contains(configFlags, f.Name) && !slices.Contains(notInFile, f.Name)
}

// notInFile are flags that mean nothing in a file.
var notInFile = []string{"config", "help"}

// load reads the file of --config. Flags that were given win.
func (f *runFlags) load(s *session) error {
	values, err := tomlfile.Values(f.config)
	if err != nil {
		return err
	}
	if command, ok := values[commandKey]; ok {
		list, err := texts(command)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", f.config, commandKey, err)
		}
		s.Command = list
		delete(values, commandKey)
	}
	if _, ok := values[versionKey]; !ok {
		return setFlags(f.config, f.fl, values, nil)
	}
	if run, ok := values[runKey]; ok {
		table, ok := run.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: %s: not a table", f.config, runKey)
		}
		if err := setFlags(f.config, f.fl, table, configFlags); err != nil {
			return err
		}
		delete(values, runKey)
	}
	text, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("%s: %w", f.config, err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(s.Config); err != nil {
		return fmt.Errorf("%s: %s", f.config, strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// setFlags sets flags that were not given to what a file says, which has no place for those of a list.
func setFlags(path string, fl *pflag.FlagSet, values map[string]any, not []string) error {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		list, err := texts(values[key])
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, key, err)
		}
		flag := fl.Lookup(key)
		if flag == nil || slices.Contains(notInFile, key) || slices.Contains(not, key) {
			return fmt.Errorf("%s: %s: vmm run has no such flag", path, key)
		}
		if flag.Changed {
			continue
		}
		for _, text := range list {
			if err := fl.Set(key, text); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}

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

// writeConfig writes a Config, the command and the flags that concern the run as such a
// file.
func writeConfig(w io.Writer, c vm.Config, command []string, fl *pflag.FlagSet) error {
	c.Version = vm.ConfigVersion
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var values map[string]any
	if err := d.Decode(&values); err != nil {
		return err
	}
	values, _ = numbers(values).(map[string]any)
	if len(command) > 0 {
		values[commandKey] = command
	}
	run := map[string]any{}
	fl.Visit(func(f *pflag.Flag) {
		if !inTable(f) {
			return
		}
		switch list := f.Value.(type) {
		case pflag.SliceValue:
			run[f.Name] = list.GetSlice()
		default:
			run[f.Name] = f.Value.String()
			if f.Value.Type() == "bool" {
				run[f.Name] = f.Value.String() == "true"
			}
		}
	})
	if len(run) > 0 {
		values[runKey] = run
	}
	e := toml.NewEncoder(w)
	e.Indent = ""
	return e.Encode(values)
}

// numbers makes the numbers of JSON whole ones where they are.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		n, _ := v.Float64()
		return n
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	}
	return v
}

// configCommand is vmm config.
func configCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "config [flags] [--] [COMMAND [ARGUMENT...]]",
		Short: "Write flags of vmm run as a file for vmm run --config",
		Long: "config checks flags of vmm run and writes the VM that they describe as a TOML file; \"command\"\n" +
			"is the command, and [run] has the flags that do not describe the VM. Flags beside --config win\n" +
			"over those of the file.",
		Example: "  vmm config -m 1G --share .:/work -- make check > vm.toml\n  vmm run --config vm.toml",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := f.read(args)
			if err != nil {
				return err
			}
			written := *s.Config
			if err := f.complete(cmd.Context(), s); err != nil {
				return err
			}
			if err := s.Config.Check(); err != nil {
				return &exitError{statusUsage, inFlags(err)}
			}
			return writeConfig(cmd.OutOrStdout(), written, args, cmd.Flags())
		},
	}
	f.add(cmd.Flags())
	return cmd
}
