package md

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const (
	someUUID = "00112233445566778899aabbccddeeff"
	someSize = 1 << 20
)

// made is a superblock of the test's.
type made struct {
	version string
	index   uint32
	events  uint64
	created uint64
	label   string // of version 1
	faulty  []int
}

// super makes a superblock for a device of someSize bytes; at is where it belongs.
func (m made) super() (b []byte, at int64) {
	le := binary.LittleEndian
	b = make([]byte, superSize)
	le.PutUint32(b, Magic)
	if m.version == "0.90" {
		put := func(i int, v uint32) { le.PutUint32(b[4*i:], v) }
		put(2, minor90)
		put(uuid90, 0x00112233)
		put(uuidRest90, 0x44556677)
		put(uuidRest90+1, 0x8899aabb)
		put(uuidRest90+2, 0xccddeeff)
		put(created90, uint32(m.created))
		put(number90, 3)
		put(events90, uint32(m.events))
		put(events90+1, uint32(m.events>>32))
		put(this90, m.index)
		for _, i := range m.faulty {
			put(disks90+i*diskWords90+diskState90, diskFaulty90)
		}
		put(checksum90, sum90(b))
		return b, someSize - reserved90
	}
	at = map[string]int64{"1.0": someSize - tail10, "1.1": 0, "1.2": at12}[m.version]
	const roles = 5
	le.PutUint32(b[4:], 1)
	for i := range 16 {
		b[uuid1+i] = byte(0x11 * i)
	}
	copy(b[name1:], m.label)
	le.PutUint64(b[created1:], m.created)
	le.PutUint64(b[PlaceAt:], uint64(at/sector))
	le.PutUint32(b[device1:], m.index)
	le.PutUint64(b[events1:], m.events)
	le.PutUint32(b[maxDevice1:], roles)
	for _, i := range m.faulty {
		le.PutUint16(b[roles1+2*i:], faulty1)
	}
	le.PutUint32(b[checksum1:], sum1(b, roles))
	return b, at
}

// disk makes a device that has superblocks.
func disk(list ...made) []byte {
	b := make([]byte, someSize)
	for _, m := range list {
		s, at := m.super()
		copy(b[at:], s)
	}
	return b
}

func TestReadSuperblock(t *testing.T) {
	for _, c := range []struct {
		name string
		has  []made
		want superblock // without what is made the same of all
	}{
		{"0.90", []made{{version: "0.90", index: 1, events: 5 << 32, created: 7, faulty: []int{2}}},
			superblock{at: someSize - 65536, version: "0.90", minor: 3, created: 7, events: 5 << 32, index: 1}},
		{"1.0", []made{{version: "1.0", index: 1, events: 9, label: "host:4", faulty: []int{2}}},
			superblock{at: someSize - 8192, version: "1.0", label: "4", minor: 4, events: 9, index: 1}},
		{"1.1", []made{{version: "1.1", label: "root", faulty: []int{2}}}, superblock{version: "1.1", label: "root", minor: -1}},
		{"1.2", []made{{version: "1.2", label: "a\tb", faulty: []int{2}}}, superblock{at: 4096, version: "1.2", minor: -1}},
		{"no minor number", []made{{version: "1.2", label: "4000000", faulty: []int{2}}}, superblock{at: 4096, version: "1.2", label: "4000000", minor: -1}},
		{"an older one", []made{{version: "1.2", created: 2, faulty: []int{2}}, {version: "0.90", created: 1}}, superblock{at: 4096, version: "1.2", minor: -1, created: 2}},
		{"a newer one", []made{{version: "1.2", created: 2}, {version: "0.90", created: 3, faulty: []int{2}}},
			superblock{at: someSize - 65536, version: "0.90", minor: 3, created: 3}},
	} {
		b := disk(c.has...)
		s, err := readSuperblock(bytes.NewReader(b), someSize)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s.uuid != someUUID || s.faulty[1] || !s.faulty[2] {
			t.Errorf("%s: the array %s, faulty %v", c.name, s.uuid, s.faulty)
		}
		s.uuid, s.faulty = "", nil
		if !reflect.DeepEqual(*s, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.name, *s, c.want)
		}
	}
}

// TestNoSuperblock: damage is told from nothing, and what a superblock says of sizes and places
// is not believed.
func TestNoSuperblock(t *testing.T) {
	changed := func(version string, at int, to byte, sum bool) []byte {
		s, place := made{version: version}.super()
		s[at] = to
		if sum {
			roles := binary.LittleEndian.Uint32(s[maxDevice1:])
			binary.LittleEndian.PutUint32(s[checksum1:], sum1(s, roles))
		}
		b := make([]byte, someSize)
		copy(b[place:], s)
		return b
	}
	for name, c := range map[string]struct {
		disk []byte
		want error
	}{
		"nothing":                  {make([]byte, someSize), errNone},
		"a small device":           {make([]byte, 512), errNone},
		"0.90, changed":            {changed("0.90", 400, 1, false), errDamaged},
		"1.2, changed":             {changed("1.2", 100, 1, false), errDamaged},
		"1.2, too many roles":      {changed("1.2", maxDevice1+1, 0xff, false), errDamaged},
		"1.2, of another place":    {changed("1.2", PlaceAt, 16, true), errNone},
		"1.0, of a larger device":  {changed("1.0", PlaceAt+2, 1, true), errNone},
		"0.91, which is a reshape": {changed("0.90", 8, 91, false), errNone},
		"version 2":                {changed("1.1", 4, 2, true), errNone},
	} {
		if s, err := readSuperblock(bytes.NewReader(c.disk), int64(len(c.disk))); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

func TestAssemble(t *testing.T) {
	on := func(name, disk string, start int64, s superblock) member {
		return member{device{name: name, disk: disk, start: start}, &s}
	}
	s := func(uuid string, index uint32, events uint64) superblock {
		return superblock{uuid: uuid, version: "1.2", index: index, events: events, at: 4096}
	}
	for _, c := range []struct {
		name    string
		members []member
		want    string // the arrays' members
		left    []string
	}{
		{"two arrays", []member{on("vda1", "vda", 512, s("a", 0, 8)), on("vda2", "vda", 5120, s("b", 0, 8)), on("vdb1", "vdb", 512, s("a", 1, 8))}, "vda1 vdb1; vda2", nil},
		{"a stale one", []member{on("vda1", "vda", 512, s("a", 0, 8)), on("vdb1", "vdb", 512, s("a", 1, 20))}, "vdb1", []string{"vda1: stale"}},
		{"one event behind", []member{on("vda1", "vda", 512, s("a", 0, 19)), on("vdb1", "vdb", 512, s("a", 1, 20))}, "vdb1 vda1", nil},
		{"a faulty one", []member{on("vda", "", 0, superblock{uuid: "a", events: 9, faulty: map[uint32]bool{1: true}}), on("vdb", "", 0, superblock{uuid: "a", events: 8, index: 1})},
			"vda", []string{"vdb: the array a has it as faulty"}},
		{"a copy of a disk", []member{on("vda1", "vda", 512, s("a", 0, 8)), on("vdb1", "vdb", 512, s("a", 0, 8))}, "vda1", []string{"vdb1: a second device 0"}},
		{"a partition at the disk's end", []member{on("vda", "", 0, superblock{uuid: "a", at: 65536}), on("vda3", "vda", 60000, superblock{uuid: "a", at: 5536})}, "vda3", nil},
		{"partitions in the array", []member{on("vda", "", 0, s("a", 0, 8)), on("vda1", "vda", 512, s("b", 0, 8))}, "vda", nil},
		{"nothing", nil, "", nil},
	} {
		arrays, left := assemble(c.members)
		var got []string
		for _, a := range arrays {
			var names []string
			for _, m := range a.members {
				names = append(names, m.name)
			}
			got = append(got, strings.Join(names, " "))
		}
		all := 0
		for _, a := range arrays {
			all += len(a.names)
		}
		if named := len(strings.Fields(c.want)) + len(left); all != named {
			t.Errorf("%s: %d devices say they are members, not %d", c.name, all, named)
		}
		if strings.Join(got, "; ") != c.want || len(left) != len(c.left) {
			t.Errorf("%s: %q, left %v", c.name, got, left)
			continue
		}
		for i, want := range c.left {
			if !strings.Contains(left[i].Error(), want) {
				t.Errorf("%s: %v, want %s", c.name, left[i], want)
			}
		}
	}
}

// TestStart: what the kernel is told of an array, and under which name.
func TestStart(t *testing.T) {
	sys := t.TempDir() + "/"
	s := starter{sys, map[int]bool{}}
	attributes := func(name string) string { return filepath.Join(sys, "block", name, "md") }
	for _, name := range []string{"md0", "md127", "md126"} {
		if err := os.MkdirAll(attributes(name), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, attribute := range []string{"metadata_version", "new_dev", "array_state"} {
			if err := os.WriteFile(filepath.Join(attributes(name), attribute), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	const create = "module/md_mod/parameters/new_array"
	if err := os.MkdirAll(filepath.Dir(sys+create), 0o755); err != nil {
		t.Fatal(err)
	}
	a := func(minor int) array {
		return array{[]member{{device{name: "vda", number: "254:0"}, &superblock{uuid: someUUID, version: "1.2", label: "home", minor: minor}}}, []string{"vda", "vdb"}}
	}
	if _, _, err := s.start(a(5)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a kernel without md: %v", err)
	}
	if err := os.WriteFile(sys+create, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		minor int
		want  string
	}{{0, "md0"}, {0, "md127"}, {-1, "md126"}} {
		got, refused, err := s.start(a(c.minor))
		if err != nil || refused != nil || !reflect.DeepEqual(got, Array{c.want, someUUID, "home", []string{"vda", "vdb"}}) {
			t.Errorf("%d: %+v, %v, %v", c.minor, got, refused, err)
		}
		for path, want := range map[string]string{
			filepath.Join(attributes(c.want), "metadata_version"): "1.2", filepath.Join(attributes(c.want), "new_dev"): "254:0",
			filepath.Join(attributes(c.want), "array_state"): "readonly",
		} {
			if b, err := os.ReadFile(path); err != nil || string(b) != want {
				t.Errorf("%s: %q, %v", path, b, err)
			}
		}
	}
	for i := len(s.taken); i < maxArrays; i++ {
		s.taken[1000+i] = true
	}
	if _, _, err := s.start(a(7)); err == nil {
		t.Error("any number of arrays is started")
	}
}

func FuzzReadSuperblock(f *testing.F) {
	for _, version := range []string{"0.90", "1.0", "1.1", "1.2"} {
		s, at := made{version: version, label: "a:1"}.super()
		f.Add(at, s)
	}
	f.Fuzz(func(t *testing.T, at int64, s []byte) {
		b := make([]byte, someSize)
		if at >= 0 && at < someSize {
			copy(b[at:], s)
		}
		m, err := readSuperblock(bytes.NewReader(b), someSize)
		if err != nil {
			return
		}
		if len(m.uuid) != 32 || m.minor > maxMinor || strings.ContainsAny(m.label, "\n\t") || len(m.faulty) > maxRoles1 {
			t.Errorf("%+v", m)
		}
		assemble([]member{{device{name: "vda"}, m}, {device{name: "vda1", disk: "vda", start: 512}, m}})
	})
}
