package guestimages

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"vmm/internal/decompress"
)

// guestModules are what a guest needs before its root is mounted, where a kernel
// has it as modules. What the kernel has built in, or not at all, is left out: the
// guest says what it misses.
var guestModules = []string{
	"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtiofs",
	"vmw_vsock_virtio_transport", "af_packet", "overlay", "ext4", "squashfs", "erofs",
	"button", "evdev", // of the power button
	"pvpanic", "pvpanic_mmio", // the same, by kernel
}

// PmemModules are what a guest needs beside them for persistent memory.
var PmemModules = []string{"virtio_pmem", "nd_pmem"}

// moduleDir is where the initial RAM disk has the modules.
const moduleDir = "modules"

// ModuleTree finds the directory of a kernel's modules: dir itself, or the only one
// below its lib/modules, as make modules_install makes it.
func ModuleTree(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err == nil {
		return dir, nil
	}
	found, err := filepath.Glob(filepath.Join(dir, "lib/modules/*/modules.dep"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%s: no modules.dep (make modules_install writes it, and depmod)", dir)
	}
	return filepath.Dir(found[0]), nil
}

// readDeps reads a tree's modules.dep: by module name, its path, then those of what it
// needs.
func readDeps(tree string) (map[string][]string, error) {
	b, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, err
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if path, needs, ok := strings.Cut(line, ":"); ok {
			deps[moduleName(path)] = append([]string{path}, strings.Fields(needs)...)
		}
	}
	return deps, nil
}

// HasModules reports whether a tree, as ModuleTree finds it below dir, has all modules of
// these names, or its kernel has them built in.
func HasModules(dir string, names ...string) bool {
	tree, err := ModuleTree(dir)
	if err != nil {
		return false
	}
	deps, err := readDeps(tree)
	if err != nil {
		return false
	}
	builtin, _ := os.ReadFile(filepath.Join(tree, "modules.builtin")) // not every tree has it
	for path := range strings.Lines(string(builtin)) {
		deps[moduleName(strings.TrimSpace(path))] = nil
	}
	return !slices.ContainsFunc(names, func(name string) bool { _, ok := deps[name]; return !ok })
}

// Modules returns the modules of a tree that a guest needs, and those named, as files for an
// initial RAM disk and as the paths to load in order.
func Modules(tree string, more ...string) (files []cpio.Record, load []string, err error) {
	deps, err := readDeps(tree)
	if err != nil {
		return nil, nil, err
	}
	var paths []string
	for _, name := range append(slices.Clone(guestModules), more...) {
		// depmod lists what a module needs in the order in which to remove it.
		list := slices.Clone(deps[name])
		slices.Reverse(list)
		for _, p := range list {
			if !slices.Contains(paths, p) {
				paths = append(paths, p)
			}
		}
	}
	for _, p := range paths {
		data, err := readModule(filepath.Join(tree, p))
		if err != nil {
			return nil, nil, err
		}
		to := moduleDir + "/" + moduleName(p) + ".ko"
		files = append(files, cpio.StaticFile(to, string(data), 0o644))
		load = append(load, "/"+to)
	}
	return files, load, nil
}

// moduleName is a module's name, by its file's.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// maxModule bounds a module, in bytes.
const maxModule = 64 << 20

// readModule reads a module, which may be compressed.
func readModule(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := decompress.Detect(data)
	if f == nil {
		return data, nil
	}
	r, err := f.NewReader(bytes.NewReader(data))
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(r, maxModule+1))
		r.Close()
	}
	if err == nil && len(data) > maxModule {
		err = errors.New("too large")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}
