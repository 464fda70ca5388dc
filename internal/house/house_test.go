package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "vmm/"

// layers are the packages from the top down: one may import those of the layers below
// its own, and what its own layer's line allows. A package that ends in /... stands for all
// below it too.
var layers = [][]string{
	{"cmd/vmm"},
	{"internal/cli"},
	{"vm/client", "vm/registry", "vm/server", "vm/warm", "vm/rootdisk", "vm/spec", "kerneltest/..."},
	{"vm"},
	{"machine/..."},
	{"guest-images/...", "bootloader/...", "devices/...", "virtio/...", "storage/...", "network/..."},
	{"kvm"},
}

// beside are those that any may import, and that import none of the layers.
var beside = []string{"internal/bytesize", "internal/cgroup", "internal/compose", "internal/ctxio", "internal/decompress", "internal/elf", "internal/flock", "internal/holes", "internal/hostpid", "internal/iovec", "internal/jail", "internal/loglimit", "internal/meminfo", "internal/mounts", "internal/output", "internal/paths", "internal/room",
	"internal/tail", "internal/tarfile", "internal/temp", "internal/tomlfile", "internal/treefs",
	"internal/tcpowner", "internal/unixsocket", "internal/version", "internal/visible", "internal/vmem", "internal/vmname", "internal/x86", "internal/xattr", "vm/api", "vm/credentials"}

// outside are programs and tests, which may import anything.
var outside = []string{"tests/...", "internal/house", "internal/manpages", "guest-images/init", "guest-images/pack", "packaging/patched", "virtio/virtiotest/...", "network/networktest"}

// never is what a package must not import, although its layer could.
var never = map[string][]string{
	"storage/...":      {"virtio/...", "network/...", "devices/..."},
	"network/...":      {"virtio/...", "storage/...", "devices/..."},
	"virtio/...":       {"storage/...", "bootloader/...", "guest-images/..."},
	"devices/...":      {"virtio/...", "storage/...", "network/..."},
	"bootloader/...":   {"virtio/...", "devices/...", "network/..."},
	"kerneltest/...":   {"internal/cli"},
	"vm/client":        {"vm", "vm/server", "vm/registry", "machine/...", "kvm"},
	"guest-images/...": {"devices/...", "network/gateway"},
}

func in(pkg string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool {
		base, deep := strings.CutSuffix(p, "/...")
		return pkg == base || deep && strings.HasPrefix(pkg, base+"/")
	})
}

func layer(pkg string) int {
	return slices.IndexFunc(layers, func(l []string) bool { return in(pkg, l) })
}

// listed is a package as go list tells it.
type listed struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
	Dir        string
}

func list(t *testing.T) []listed {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go to list packages with")
	}
	c := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles,Dir", module+"...")
	c.Stderr = os.Stderr
	b, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestImports: imports run one way.
func TestImports(t *testing.T) {
	for _, p := range list(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		if in(pkg, outside) {
			continue
		}
		own, free := layer(pkg), in(pkg, beside)
		if own < 0 && !free {
			t.Errorf("%s is in no layer: give it a place in this test and in docs/architecture.md", pkg)
			continue
		}
		for _, path := range p.Imports {
			to, ours := strings.CutPrefix(path, module)
			if !ours || in(to, beside) {
				continue
			}
			if free || in(to, outside) && !in(pkg, outside) {
				t.Errorf("%s imports %s", pkg, to)
				continue
			}
			if l := layer(to); l < own {
				t.Errorf("%s imports %s, which is above it", pkg, to)
			}
			for from, list := range never {
				if in(pkg, []string{from}) && in(to, list) {
					t.Errorf("%s imports %s", pkg, to)
				}
			}
		}
	}
}

// TestMainOnly: cmd/vmm has only main.
func TestMainOnly(t *testing.T) {
	for _, p := range list(t) {
		if p.ImportPath == module+"cmd/vmm" && !slices.Equal(p.GoFiles, []string{"main.go"}) {
			t.Errorf("cmd/vmm has %v", p.GoFiles)
		}
	}
}

// longest is how many lines a file may have.
const longest = 500

// TestFiles: no file is too long to be read at once.
func TestFiles(t *testing.T) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return fs.SkipDir // .patched has others' sources
		}
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		b, err := os.ReadFile(path)
		if n := bytes.Count(b, []byte("\n")); n > longest {
			t.Errorf("%s has %d lines, more than %d", path, n, longest)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
