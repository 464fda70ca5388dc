package vm

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmm/machine/snapshot"
	"vmm/storage/share"
	"vmm/virtio/blk"
	vconsole "vmm/virtio/console"
	"vmm/virtio/fs"
	vnet "vmm/virtio/net"
	"vmm/virtio/pmem"
	"vmm/virtio/vsock"
)

var update = flag.Bool("update", false, "write docs/snapshot-schema.md anew")

// TestSchema holds the schema in the docs to the types.
func TestSchema(t *testing.T) {
	var out strings.Builder
	out.WriteString("# Schema of a snapshot's state\n\n" +
		"Made from the types by `go test ./vm -run Schema -update`. Bytes are base64. A field that is\n" +
		"new leaves the version as it is; a change that older programs would misunderstand raises it.\n")
	for _, s := range []struct {
		title string
		of    any
	}{
		{"snapshot.json", snapshot.Manifest{}},
		{"config: how the VM is made", saved{}},
		{"device: virtio block", blk.State{}},
		{"device: virtio persistent memory", pmem.State{}},
		{"device: virtio network", vnet.State{}},
		{"device: virtio console", vconsole.State{}},
		{"device: virtio vsock", vsock.State{}},
		{"device: virtio file system", fs.State{}},
		{"fs: the files that a guest knows", share.State{}},
	} {
		fmt.Fprintf(&out, "\n## %s\n\n```\n", s.title)
		describeType(&out, reflect.TypeOf(s.of), "")
		out.WriteString("```\n")
	}
	const path = "../docs/snapshot-schema.md"
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != out.String() {
		t.Errorf("%s is not what the types say (%v): go test ./vm -run Schema -update, and look whether a version must grow", path, err)
	}
}

// describeType prints the fields of a structure, by their names in JSON.
func describeType(out *strings.Builder, t reflect.Type, indent string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		kind, inner := f.Type, f.Type
		note := ""
		if options != "" {
			note = " (may be missing)"
		}
		list := ""
		for inner.Kind() == reflect.Slice && inner.Elem().Kind() != reflect.Uint8 || inner.Kind() == reflect.Array || inner.Kind() == reflect.Pointer {
			if inner.Kind() != reflect.Pointer {
				list += "list of "
			}
			inner = inner.Elem()
		}
		text := reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()
		switch {
		case kind == reflect.TypeFor[json.RawMessage]():
			fmt.Fprintf(out, "%s%s: see below%s\n", indent, name, note)
		case kind == reflect.TypeFor[time.Time](), inner.Implements(text):
			fmt.Fprintf(out, "%s%s: %stext%s\n", indent, name, list, note)
		case inner.Kind() == reflect.Slice:
			fmt.Fprintf(out, "%s%s: %sbytes%s\n", indent, name, list, note)
		case inner.Kind() == reflect.Struct:
			fmt.Fprintf(out, "%s%s: %sobject%s\n", indent, name, list, note)
			describeType(out, inner, indent+"  ")
		default:
			fmt.Fprintf(out, "%s%s: %s%s%s\n", indent, name, list, inner.Kind(), note)
		}
	}
}
