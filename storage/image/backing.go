package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmm/internal/paths"
	"vmm/storage"
)

// LoopError is the error for images that are, over others or at once, their own backing
// files.
type LoopError struct{ Paths []string } // from an image down to itself, which is not repeated

// Error implements error.
func (e *LoopError) Error() string {
	return fmt.Sprintf("a loop of backing files: %s -> %s", strings.Join(e.Paths, " -> "), e.Paths[0])
}

func newLoop(files []*storage.File) *LoopError {
	e := &LoopError{}
	for _, f := range files {
		e.Paths = append(e.Paths, f.Name())
	}
	return e
}

// backing is where a backing file is, and its format; "" if that is to be found out.
type backing struct{ path, format string }

// findBacking reads the name of a backing file as the image f has it, relative to that, and
// the format that f has for it.
func findBacking(f *storage.File, name, format string) (b backing, err error) {
	b = backing{name, format}
	if text, ok := strings.CutPrefix(name, "json:"); ok {
		if b, err = parseBacking([]byte(text)); err != nil {
			return b, fmt.Errorf("%s: its backing file %s: %w", f.Name(), name, err)
		}
		if format != "" {
			b.format = format // as QEMU has it
		}
	} else if rest, ok := strings.CutPrefix(name, "file:"); ok {
		b.path = rest
	} else if colon := strings.IndexByte(name, ':'); colon > 0 && !strings.Contains(name[:colon], "/") {
		return b, fmt.Errorf("%s: its backing file is %q: only files are possible", f.Name(), name)
	}
	if !filepath.IsAbs(b.path) {
		b.path = filepath.Join(f.Dir(), b.path)
	}
	return b, nil
}

// fileDrivers are QEMU's drivers of what is a file of the host.
var fileDrivers = []string{"file", "host_device"}

// harmless are options of QEMU's drivers that change nothing of what an image shows.
var harmless = []string{"node-name", "read-only", "auto-read-only", "discard", "detect-zeroes", "cache", "force-share",
	"locking", "aio", "aio-max-batch", "drop-cache", "x-check-cache-dropped", "pr-manager",
	"lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other", "discard-no-unref", "overlap-check",
	"cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval"}

// parseBacking reads QEMU's description of a block device (what follows "json:"), whose keys
// may be written with dots for what lies in another (BlockdevOptions in qapi/block-core.json).
// It understands images in files.
func parseBacking(text []byte) (b backing, err error) {
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		return b, err
	}
	options := map[string]string{}
	if err := flatten(options, "", tree); err != nil {
		return b, err
	}
	driver := options["driver"]
	file := "file."
	switch {
	case slices.Contains(fileDrivers, driver):
		file = ""
	case driver == Raw, driver == Qcow2:
		b.format = driver
	case driver != "":
		return b, fmt.Errorf("the driver %q: only files are possible, raw or qcow2", driver)
	case options["filename"] != "":
		file = ""
	}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := options[key]
		rest, ofFile := strings.CutPrefix(key, file)
		name, _, _ := strings.Cut(rest, ".")
		switch {
		case ofFile && rest == "filename":
			b.path = value
		case ofFile && rest == "driver" && (file == "" || slices.Contains(fileDrivers, value)), key == "driver":
		case ofFile && slices.Contains(harmless, name), slices.Contains(harmless, strings.SplitN(key, ".", 2)[0]):
		default:
			return backing{}, fmt.Errorf("the option %s=%s is not understood", key, value)
		}
	}
	if b.path == "" {
		return b, fmt.Errorf("it names no file")
	}
	return b, nil
}

// flatten writes what is in a tree with dotted keys.
func flatten(out map[string]string, prefix string, tree map[string]any) error {
	for key, v := range tree {
		key = prefix + key
		if below, ok := v.(map[string]any); ok {
			if err := flatten(out, key+".", below); err != nil {
				return err
			}
			continue
		}
		if _, twice := out[key]; twice {
			return fmt.Errorf("%s is there twice", key)
		}
		switch v := v.(type) {
		case string:
			out[key] = v
		case bool:
			out[key] = strconv.FormatBool(v)
		case float64:
			out[key] = strconv.FormatFloat(v, 'f', -1, 64)
		case nil:
			out[key] = "null"
		default:
			return fmt.Errorf("%s is neither a text nor a number", key)
		}
	}
	return nil
}

// allowed refuses a raw backing file that does not lie beside the image that
// names it, or below.
func allowed(f, backing *storage.File) error {
	dir, err := paths.Real(f.Dir())
	if err != nil {
		return err
	}
	path, err := paths.Real(backing.Name())
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) {
		return nil
	}
	return fmt.Errorf("%s: its backing file %s is %w", f.Name(), backing.Name(), ErrForeignBacking)
}
