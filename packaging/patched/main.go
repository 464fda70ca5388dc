// Command patched makes, in .patched at the top of the source tree, copies of dependencies that
// do when they are needed what they would do at each start of the program, and a go.mod that
// has these in their place. It prints that file's name, for go build's -modfile. A build
// without it works as well, but for the time that each command takes to start.
//
// jsonschema compiles the schemas of five drafts of JSON Schema when a program starts, by
// 21,000 allocations: a sixth of the CPU time that vmm needed to start a VM. Only compose files
// need them, of which one goroutine makes the first compiler. The regular expressions of
// image names and digests were a third of what was left before main.
package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// patch is what is changed in a module.
type patch struct {
	module string
	pkg    string // what is at the module's top
	edits  []edit
	// lazy are files of that whose regular expressions are compiled when they are first used.
	lazy []string
}

// edit is a piece of a file that is there once, and what it becomes.
type edit struct{ file, old, new string }

var patches = []patch{
	{module: "github.com/santhosh-tekuri/jsonschema/v6", pkg: "jsonschema", edits: []edit{
		{"draft.go", "\nfunc init() {", `
// Changed for vmm, from init: NewCompiler calls it.
func compileDrafts() {
	if draftsCompiled {
		return
	}
	draftsCompiled = true`},
		{"draft.go", "\nvar (", "\nvar draftsCompiled bool\n\nvar ("},
		{"compiler.go", "\nfunc NewCompiler() *Compiler {", "\nfunc NewCompiler() *Compiler {\n\tcompileDrafts() // changed for vmm"},
	}},
	{module: "github.com/distribution/reference", pkg: "reference", lazy: []string{"regexp.go"}},
	{module: "github.com/opencontainers/go-digest", pkg: "digest", lazy: []string{"algorithm.go", "digest.go"}},
}

//go:embed lazy.go.txt
var lazyRegexp string

func main() {
	name, err := write()
	if err != nil {
		fmt.Fprintln(os.Stderr, "patched:", err)
		os.Exit(1)
	}
	fmt.Println(name)
}

func write() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	dir := filepath.Join(root, ".patched")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return "", err
	}
	for _, p := range patches {
		made, err := p.apply(dir)
		if err != nil {
			return "", fmt.Errorf("%s: %w", p.module, err)
		}
		mod = fmt.Appendf(mod, "\nreplace %s => ./.patched/%s\n", p.module, made) // from the top, wherever the file is
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "go.mod")
	return name, errors.Join(replace(name, mod), replace(filepath.Join(dir, "go.sum"), sum))
}

// apply makes the patched copy in a directory, if it is not there, and returns its name.
func (p patch) apply(dir string) (string, error) {
	out, err := exec.Command("go", "mod", "download", "-json", p.module).Output()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	var module struct{ Dir, Version string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", err
	}
	recipe := sha256.Sum256(fmt.Append(nil, module.Version, p, lazyRegexp))
	name := fmt.Sprintf("%s-%x", p.pkg, recipe[:6])
	final := filepath.Join(dir, name)
	if _, err := os.Stat(final); err == nil {
		return name, nil
	}
	making, err := os.MkdirTemp(dir, "making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(making)
	copied := filepath.Join(making, name) // for others to read, which temporary directories are not
	err = filepath.WalkDir(module.Dir, func(from string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(module.Dir, from)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(copied, rel), 0o755)
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		text, err := p.changed(rel, string(b))
		if err != nil {
			return fmt.Errorf("%s, version %s: %w", rel, module.Version, err)
		}
		return os.WriteFile(filepath.Join(copied, rel), []byte(text), 0o644)
	})
	if err == nil && len(p.lazy) > 0 {
		err = os.WriteFile(filepath.Join(copied, "lazy_regexp.go"), []byte("package "+p.pkg+"\n"+lazyRegexp), 0o644)
	}
	if err != nil {
		return "", err
	}
	if err := os.Rename(copied, final); err != nil && !errors.Is(err, fs.ErrExist) { // by another build
		return "", err
	}
	return name, nil
}

// changed is a file's text after the patch.
func (p patch) changed(file, text string) (string, error) {
	for _, e := range p.edits {
		if file != e.file {
			continue
		}
		if n := strings.Count(text, e.old); n != 1 {
			return "", fmt.Errorf("it has %q %d times: look what this version needs", e.old, n)
		}
		text = strings.Replace(text, e.old, e.new, 1)
	}
	if slices.Contains(p.lazy, file) {
		text = strings.NewReplacer("\t\"regexp\"\n", "", "regexp.MustCompile(", "newLazyRegexp(", "*regexp.Regexp", "*lazyRegexp").Replace(text)
	}
	return text, nil
}

// replace writes a file, which another build may be reading.
func replace(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "making-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
