package machine

import (
	"errors"
	"testing"
)

// TestMapped looks for memory of devices: nobody gets what is for reading to write to it.
func TestMapped(t *testing.T) {
	const ro, rw, size = 64 << 30, 65 << 30, 4 * pageSize
	m := &Memory{regions: []region{{0, make([]byte, size)}}, mapped: []mapping{
		{gpa: ro, host: make([]byte, size), readOnly: true}, {gpa: rw, host: make([]byte, size)}}}
	m.mapped[0].host[pageSize], m.mapped[1].host[pageSize] = 1, 2
	for _, c := range []struct {
		gpa, n      uint64
		read, write bool
	}{
		{0, size, true, true}, {size, 1, false, false},
		{ro, size, true, false}, {ro - 1, 2, false, false}, {ro + size - 1, 1, true, false}, {ro + size - 1, 2, false, false},
		{rw, size, true, true}, {rw - 1, 2, false, false}, {rw + size - 1, 2, false, false}, {rw + size, 1, false, false},
		{rw, ^uint64(0), false, false}, {ro + size - 1, ^uint64(0) - 1, false, false}, {^uint64(0), 1, false, false},
	} {
		b, err := m.ReadSlice(c.gpa, c.n)
		if (err == nil) != c.read || err == nil && uint64(len(b)) != c.n || err != nil && !errors.Is(err, ErrNotRAM) {
			t.Errorf("reading %d bytes at %#x: %d bytes, %v", c.n, c.gpa, len(b), err)
		}
		if _, err := m.Slice(c.gpa, c.n); (err == nil) != c.write || err != nil && !errors.Is(err, ErrNotRAM) {
			t.Errorf("writing %d bytes at %#x: %v", c.n, c.gpa, err)
		}
	}
	for _, c := range []struct {
		gpa   uint64
		write bool
		want  byte // 0 is none
	}{{ro + pageSize + 5, false, 1}, {ro + pageSize + 5, true, 0}, {rw + pageSize, true, 2}, {rw + pageSize, false, 2}, {0, false, 0}, {rw + size, false, 0}} {
		p := m.Mapped(c.gpa, c.write)
		if (p != nil) != (c.want != 0) || p != nil && p[0] != c.want {
			t.Errorf("the page at %#x, to be written: %v: %v", c.gpa, c.write, p != nil)
		}
	}
	if m.Page(rw) != nil || m.Size() != size {
		t.Error("memory of devices is RAM") // where page tables may be
	}
}
