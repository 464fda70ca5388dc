// Command patched makes, in .patched at the top of the source tree, copies of dependencies that
// do when they are needed what they would do at each start of the program, and lack what vmm has
// no use for but the linker keeps; and a go.mod that has these in their place. It prints that
// file's name, for go build's -modfile. A build without it works as well, but for the time that
// each command takes to start, and the program's size.
//
// jsonschema compiles the schemas of five drafts of JSON Schema when a program starts, by
// 21,000 allocations: a sixth of the CPU time that vmm needed to start a VM. Only compose files
// need them, of which one goroutine makes the first compiler. The regular expressions of
// image names and digests were a third of what was left before main.
//
// The tables of a checksum, which klauspost/compress has for snappy, and what go-fuse asks the
// kernel about pipes, were a tenth of what came before main then.
//
// gvisor can save its state, and so registers 356 types and their methods when a program starts;
// vmm has other ways. golang.org/x/text has what it takes to say how long a string may be in all
// the world's languages, and jsonschema wants English. A third of the schema of compose files is
// for people to read.
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
	// without is how the names of files end that are left out.
	without string
	// schema is a JSON schema, which loses its descriptions and spaces.
	schema string
	// instead has the files that are all of the copy beside its go.mod.
	instead map[string]string
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
	{module: "gvisor.dev/gvisor", pkg: "gvisor", without: "_state_autogen.go"},
	{module: "github.com/compose-spec/compose-go/v2", pkg: "compose", schema: "schema/compose-spec.json"},
	{module: "github.com/klauspost/compress", pkg: "compress", edits: slices.Concat(tableWhenUsed("internal/snapref/snappy.go"), tableWhenUsed("zstd/snappy.go"))},
	{module: "github.com/hanwen/go-fuse/v2", pkg: "fuse", edits: []edit{
		{"splice/splice.go", "\nfunc init() {", "\n// Changed for vmm, from init.\nvar lookAtPipes = sync.OnceFunc(func() {"},
		{"splice/splice.go", "\tw.Close()\n}\n\n// We empty", "\tw.Close()\n})\n\n// We empty"},
		{"splice/splice.go", "return resizable", "lookAtPipes()\n\treturn resizable"},
		{"splice/splice.go", "return maxPipeSize", "lookAtPipes()\n\treturn maxPipeSize"},
		{"splice/pair.go", "if !resizable {", "if lookAtPipes(); !resizable {"},
	}},
	{module: "golang.org/x/text", pkg: "text", instead: map[string]string{"language/language.go": language, "message/message.go": message}},
}

// tableWhenUsed are the edits of one of snappy's files.
func tableWhenUsed(file string) []edit {
	const table = "crc32.MakeTable(crc32.Castagnoli)"
	return []edit{
		{file, "\nvar crcTable = " + table + "\n", ""},
		{file, "crc32.Update(0, crcTable, b)", "crc32.Update(0, " + table + ", b)"},
	}
}

var (
	//go:embed lazy.go.txt
	lazyRegexp string
	//go:embed language.go.txt
	language string
	//go:embed message.go.txt
	message string
)

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
		if p.leavesOut(rel) {
			return nil
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
	for file, text := range p.instead {
		err = errors.Join(err, os.WriteFile(filepath.Join(copied, file), []byte(text), 0o644))
	}
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

// leavesOut reports whether a file of the module is not in the copy.
func (p patch) leavesOut(file string) bool {
	return p.instead != nil && file != "go.mod" || p.without != "" && strings.HasSuffix(file, p.without)
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
	if file == p.schema {
		var s any
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return "", err
		}
		undescribe(s)
		b, err := json.Marshal(s)
		return string(b), err
	}
	return text, nil
}

// undescribe takes the descriptions out of a JSON schema; a property of that name is none.
func undescribe(v any) {
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v["description"].(string); ok {
			delete(v, "description")
		}
		for _, e := range v {
			undescribe(e)
		}
	case []any:
		for _, e := range v {
			undescribe(e)
		}
	}
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
