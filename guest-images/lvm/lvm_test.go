package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
)

const twoVolumes = `contents = "Text Format Volume Group"
version = 1
description = "Created *after* \"vgcreate data\""	# a comment { [
my-group {
	id = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"
	status = ["RESIZEABLE", "READ", "WRITE"]
	flags = []
	extent_size = 8192
	physical_volumes {
		pv0 {
			id = "0000-1111"
			device = "/dev/vda3"
			pe_start = 2048
			pe_count = 100
		}
		pv1 {
			id = "2222-3333"
			pe_start = 4096
		}
	}
	logical_volumes {
		root {
			segment_count = 2
			segment1 {
				start_extent = 0
				extent_count = 10
				type = "striped"
				stripe_count = 1
				stripes = [
					"pv0", 5
				]
			}
			segment2 {
				start_extent = 10
				extent_count = 4
				type = "striped"
				stripe_count = 2
				stripe_size = 128
				stripes = [ "pv0", 20, "pv1", 0 ]
			}
		}
		thin {
			segment1 {
				start_extent = 0
				extent_count = 1
				type = "thin"
			}
		}
	}
}
`

func twoDevices(uuid string) (string, bool) {
	path, ok := map[string]string{"00001111": "/dev/vda3", "22223333": "/dev/vda4"}[uuid]
	return path, ok
}

func TestVolumes(t *testing.T) {
	out, left, err := volumes(twoVolumes, twoDevices)
	if err != nil {
		t.Fatal(err)
	}
	want := []volume{{"my--group-root", []target{
		{0, 81920, "linear", "/dev/vda3 43008"},
		{81920, 32768, "striped", "2 128 /dev/vda3 165888 /dev/vda4 4096"},
	}}}
	if !reflect.DeepEqual(out, want) {
		t.Errorf("got %+v\nwant %+v", out, want)
	}
	if len(left) != 1 || !strings.Contains(left[0].Error(), `my--group-thin: a segment of type "thin"`) {
		t.Errorf("left out: %v", left)
	}
	out, left, err = volumes(twoVolumes, func(uuid string) (string, bool) { return "/dev/vda3", uuid == "00001111" })
	if err != nil || len(out) != 0 || len(left) != 2 || !strings.Contains(left[0].Error(), "pv1 is not there") {
		t.Errorf("without the second: %v, %v, %v", out, left, err)
	}
}

func TestDamaged(t *testing.T) {
	for _, text := range []string{
		"a", "a =", "a = [", "a {", "}", "a { b = 1", `a = "b`, strings.Repeat("a {", 100), `a = "b\`,
		"a { b = 1 } }", "g { }",
	} {
		if out, _, err := volumes(text, twoDevices); err == nil || len(out) > 0 {
			t.Errorf("%q: %v, %v", text, out, err)
		}
	}
}

// device makes a physical volume: its metadata begins at the given place of the ring.
func device(text string, at int) []byte {
	b := make([]byte, 1<<20)
	const area, size = 4096, 64 << 10
	label := b[sector:]
	copy(label, labelID)
	copy(label[typeAt:], labelType)
	binary.LittleEndian.PutUint32(label[headerAt:], 32)
	h := label[32:]
	copy(h, "00001111")
	for i := len("00001111"); i < uuidSize; i++ {
		h[i] = 'x'
	}
	binary.LittleEndian.PutUint64(h[areasAt:], 1<<20)
	binary.LittleEndian.PutUint64(h[areasAt+2*areaSize:], area)
	binary.LittleEndian.PutUint64(h[areasAt+2*areaSize+8:], size)
	m := b[area:]
	copy(m[magicAt:], metadataID)
	binary.LittleEndian.PutUint64(m[rawAt:], uint64(at))
	binary.LittleEndian.PutUint64(m[rawAt+8:], uint64(len(text)+1))
	n := copy(m[at:size], text)
	copy(m[metaHeader:], text[n:])
	return b
}

func TestReadPhysical(t *testing.T) {
	for _, at := range []int{metaHeader, 4096, 64<<10 - 100} {
		p, err := readPhysical(bytes.NewReader(device(twoVolumes, at)))
		if err != nil || p.text != twoVolumes || !strings.HasPrefix(p.uuid, "00001111") {
			t.Fatalf("metadata at %d: %+v, %v", at, p, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 100), make([]byte, 1<<20)} {
		if _, err := readPhysical(bytes.NewReader(b)); !errors.Is(err, ErrNotPV) {
			t.Errorf("%d bytes of nothing: %v", len(b), err)
		}
	}
}

func FuzzReadPhysical(f *testing.F) {
	f.Add(device(twoVolumes, metaHeader)[:16384])
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := readPhysical(bytes.NewReader(b)); err == nil {
			volumes(p.text, twoDevices)
		}
	})
}

func FuzzVolumes(f *testing.F) {
	f.Add(twoVolumes)
	f.Fuzz(func(t *testing.T, text string) { volumes(text, twoDevices) })
}
