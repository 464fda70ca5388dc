// Package compose reads compose files (the Compose Specification) as far as virtual machines
// have what they ask for.
package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"
)

// Options say what is read.
type Options struct {
	// Files are read in this order, each over those before it; without one, the file that
	// there is in the directory or above it. One of them may be FromInput.
	Files []string
	Input io.Reader // what FromInput stands for
	Dir   string    // the project's; that of the first file if empty
	Name  string    // the project's; what the file or its directory is called if empty
	// EnvFiles are in the place of the project's .env.
	EnvFiles []string
	Profiles []string
}

// Project is what the files say.
type Project struct {
	*types.Project
	// Order are its services, each behind those that it depends on.
	Order []types.ServiceConfig
	// Warnings are what in the files has no effect, a line each, and what their reader noticed.
	Warnings []string
}

// ErrNoFile is the error where there is nothing to read.
var ErrNoFile = errors.New("there is no compose.yaml in this directory or above it")

// FromInput is the name of a file that is read from standard input. Its paths are from the current directory.
const FromInput = "-"

// Load reads the files. The error is ErrNoFile, or says what is wrong with them.
func Load(ctx context.Context, o Options) (*Project, error) {
	at := slices.Index(o.Files, FromInput)
	if at < 0 {
		return loadFiles(ctx, o)
	}
	dir, err := os.MkdirTemp("", "vmm-compose-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "standard-input")
	if err := keep(o.Input, file); err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	if o.Dir == "" && at == 0 {
		o.Dir = "."
	}
	o.Files = slices.Clone(o.Files)
	o.Files[at] = file
	p, err := loadFiles(ctx, o)
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), file, filepath.Base(file)))
	}
	return p, err
}

// keep writes what is read to a new file, since the reader of compose files reads one twice.
func keep(r io.Reader, file string) error {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1)) // one byte more than readable lets pass
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// loadFiles is Load of files that are on the disk.
func loadFiles(ctx context.Context, o Options) (*Project, error) {
	options, err := cli.NewProjectOptions(o.Files, cli.WithWorkingDirectory(o.Dir), cli.WithOsEnv, cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
		cli.WithConfigFileEnv, cli.WithDefaultConfigPath, cli.WithName(o.Name), cli.WithProfiles(o.Profiles), cli.WithDefaultProfiles(o.Profiles...))
	if err != nil {
		return nil, err
	}
	if len(options.ConfigPaths) == 0 {
		return nil, ErrNoFile
	}
	for _, file := range options.ConfigPaths {
		if err := readable(file); err != nil {
			return nil, err
		}
	}
	p := &Project{}
	stop := listen(func(warning string) { p.Warnings = append(p.Warnings, warning) })
	p.Project, err = options.LoadProject(ctx)
	stop()
	if err != nil {
		err = errors.New(strings.Join(strings.Fields(err.Error()), " ")) // the reader's own may have several lines
		if file := filepath.Base(options.ConfigPaths[0]); !strings.Contains(err.Error(), file) {
			err = fmt.Errorf("%s: %w", file, err)
		}
		return nil, err
	}
	for _, file := range options.ConfigPaths {
		warnings, err := unsupported(file)
		if err != nil {
			return nil, err
		}
		p.Warnings = append(p.Warnings, warnings...)
	}
	return p, p.order()
}

// maxFile bounds a file, in bytes: the reader takes all of it into memory.
const maxFile = 16 << 20

// readable refuses what the reader would not come to the end of.
func readable(file string) error {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s: it is read twice, and so has to be a file", file)
	case st.Size() > maxFile:
		return fmt.Errorf("%s: larger than %d MiB", file, maxFile>>20)
	}
	return nil
}

// order fills in Order.
func (p *Project) order() error {
	const (
		visiting = iota + 1
		done
	)
	state := map[string]int{}
	var visit func(name string) error
	visit = func(name string) error {
		switch state[name] {
		case visiting:
			return fmt.Errorf("the service %s depends on itself", name)
		case done:
			return nil
		}
		s, ok := p.Services[name]
		if !ok { // it need not be there
			return nil
		}
		state[name] = visiting
		for _, dependency := range slices.Sorted(maps.Keys(s.DependsOn)) {
			if err := visit(dependency); err != nil {
				return err
			}
		}
		state[name] = done
		p.Order = append(p.Order, s)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
}

// With returns the services named, and those that they depend on, in Order; without names,
// all. The error names one that there is not.
func (p *Project) With(names []string) ([]types.ServiceConfig, error) {
	if len(names) == 0 {
		return p.Order, nil
	}
	wanted := map[string]bool{}
	var want func(name string)
	want = func(name string) {
		if s, ok := p.Services[name]; ok && !wanted[name] {
			wanted[name] = true
			for dependency := range s.DependsOn {
				want(dependency)
			}
		}
	}
	for _, name := range names {
		if _, ok := p.Services[name]; !ok {
			return nil, fmt.Errorf("no service %s: there are %s", name, strings.Join(slices.Sorted(maps.Keys(p.Services)), ", "))
		}
		want(name)
	}
	var out []types.ServiceConfig
	for _, s := range p.Order {
		if wanted[s.Name] {
			out = append(out, s)
		}
	}
	return out, nil
}

// Path is a path of the file's, absolute.
func (p *Project) Path(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(p.WorkingDir, path)
}

// listening is of who listens to the reader's log, which is one for the process.
var listening sync.Mutex

// listen has the log of the files' reader told, and printed no more, until stop is called.
func listen(to func(string)) (stop func()) {
	listening.Lock()
	logger := logrus.StandardLogger()
	out, hooks := logger.Out, logger.ReplaceHooks(logrus.LevelHooks{})
	logger.SetOutput(io.Discard)
	logger.AddHook(hook(to))
	return func() {
		logger.SetOutput(out)
		logger.ReplaceHooks(hooks)
		listening.Unlock()
	}
}

// hook is told warnings.
type hook func(string)

// Levels implements logrus.Hook.
func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel}
}

// Fire implements logrus.Hook.
func (h hook) Fire(e *logrus.Entry) error {
	h(e.Message)
	return nil
}
