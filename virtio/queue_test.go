package virtio

import (
	"encoding/binary"
	"errors"
	"testing"
)

// ram is guest memory from address 0.
type ram []byte

// Slice implements Memory.
func (m ram) Slice(gpa, n uint64) ([]byte, error) {
	if gpa > uint64(len(m)) || n > uint64(len(m))-gpa {
		return nil, errors.New("not RAM")
	}
	return m[gpa : gpa+n : gpa+n], nil
}

// ReadSlice implements Memory.
func (m ram) ReadSlice(gpa, n uint64) ([]byte, error) { return m.Slice(gpa, n) }

const (
	testSize  = 8
	testDesc  = 0x0
	testAvail = 0x1000
	testUsed  = 0x2000
	testData  = 0x4000
	testRAM   = 0x10000
)

func testQueue(t testing.TB, m ram, features uint64, interrupt func()) *Queue {
	t.Helper()
	q, err := NewQueue(m, Layout{testSize, testDesc, testAvail, testUsed}, features, interrupt)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// desc writes a descriptor of a table.
func (m ram) desc(table, i int, addr uint64, n uint32, flags, next uint16) {
	b := m[table+16*i:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// publish makes chains available.
func (m ram) publish(heads ...uint16) {
	idx := binary.LittleEndian.Uint16(m[testAvail+2:])
	for _, h := range heads {
		binary.LittleEndian.PutUint16(m[testAvail+4+2*int(idx%testSize):], h)
		idx++
	}
	binary.LittleEndian.PutUint16(m[testAvail+2:], idx)
}

func TestPop(t *testing.T) {
	for _, c := range []struct {
		name     string
		make     func(m ram)
		readable []int // lengths; nil with bad
		writable []int
		bad      bool
	}{
		{"readable and writable", func(m ram) {
			m.desc(0, 3, testData, 16, descNext, 5)
			m.desc(0, 5, testData+16, 100, descNext|descWrite, 1)
			m.desc(0, 1, testData+200, 1, descWrite, 0)
			m.publish(3)
		}, []int{16}, []int{100, 1}, false},
		{"indirect", func(m ram) {
			m.desc(0, 0, testData, 3*16, descIndirect, 0)
			m.desc(testData, 0, testData+0x100, 1, descNext, 1)
			m.desc(testData, 1, testData+0x101, 2, descNext, 2)
			m.desc(testData, 2, testData+0x200, 3, descWrite, 0)
			m.publish(0)
		}, []int{1, 2}, []int{3}, false},
		{"direct, then indirect", func(m ram) {
			m.desc(0, 0, testData, 4, descNext, 1)
			m.desc(0, 1, testData+0x100, 16, descIndirect, 0)
			m.desc(testData+0x100, 0, testData+0x200, 7, descWrite, 0)
			m.publish(0)
		}, []int{4}, []int{7}, false},
		{"a whole queue in one chain", func(m ram) {
			for i := range testSize {
				m.desc(0, i, testData, 1, descNext, uint16(i+1))
			}
			m.desc(0, testSize-1, testData, 1, 0, 0)
			m.publish(0)
		}, []int{1, 1, 1, 1, 1, 1, 1, 1}, nil, false},
		{"loop", func(m ram) {
			m.desc(0, 0, testData, 1, descNext, 1)
			m.desc(0, 1, testData, 1, descNext, 0)
			m.publish(0)
		}, nil, nil, true},
		{"loop in a table", func(m ram) {
			m.desc(0, 0, testData, 32, descIndirect, 0)
			m.desc(testData, 0, testData, 1, descNext, 1)
			m.desc(testData, 1, testData, 1, descNext, 0)
			m.publish(0)
		}, nil, nil, true},
		{"head out of range", func(m ram) { m.publish(testSize) }, nil, nil, true},
		{"next out of range", func(m ram) { m.desc(0, 0, testData, 1, descNext, 99); m.publish(0) }, nil, nil, true},
		{"not memory", func(m ram) { m.desc(0, 0, testRAM-1, 2, 0, 0); m.publish(0) }, nil, nil, true},
		{"address that wraps", func(m ram) { m.desc(0, 0, ^uint64(0), 2, 0, 0); m.publish(0) }, nil, nil, true},
		{"zero length", func(m ram) { m.desc(0, 0, testData, 0, 0, 0); m.publish(0) }, nil, nil, true},
		{"readable after writable", func(m ram) {
			m.desc(0, 0, testData, 1, descNext|descWrite, 1)
			m.desc(0, 1, testData, 1, 0, 0)
			m.publish(0)
		}, nil, nil, true},
		{"a table in a table", func(m ram) {
			m.desc(0, 0, testData, 16, descIndirect, 0)
			m.desc(testData, 0, testData, 16, descIndirect, 0)
			m.publish(0)
		}, nil, nil, true},
		{"a table with more after it", func(m ram) { m.desc(0, 0, testData, 16, descIndirect|descNext, 1); m.publish(0) }, nil, nil, true},
		{"a table of half a descriptor", func(m ram) { m.desc(0, 0, testData, 24, descIndirect, 0); m.publish(0) }, nil, nil, true},
		{"more chains than the queue has", func(m ram) {
			m.desc(0, 0, testData, 1, 0, 0)
			m.publish(0, 0, 0, 0, 0, 0, 0, 0, 0)
		}, nil, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := make(ram, testRAM)
			q := testQueue(t, m, FeatureIndirectDesc, nil)
			c.make(m)
			var chain Chain
			ok, err := q.Pop(&chain)
			if c.bad {
				if ok || !errors.Is(err, ErrMalformed) {
					t.Fatalf("popped: %v, %v", ok, err)
				}
				return
			}
			if !ok || err != nil {
				t.Fatalf("not popped: %v", err)
			}
			for _, part := range []struct {
				got  [][]byte
				want []int
			}{{chain.Readable, c.readable}, {chain.Writable, c.writable}} {
				if len(part.got) != len(part.want) {
					t.Fatalf("%d parts, want %d", len(part.got), len(part.want))
				}
				for i, b := range part.got {
					if len(b) != part.want[i] {
						t.Errorf("part %d has %d bytes, want %d", i, len(b), part.want[i])
					}
				}
			}
		})
	}
}

func TestIndirectUnasked(t *testing.T) {
	m := make(ram, testRAM)
	q := testQueue(t, m, 0, nil)
	m.desc(0, 0, testData, 16, descIndirect, 0)
	m.publish(0)
	if _, err := q.Pop(&Chain{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("an indirect descriptor that was not negotiated: %v", err)
	}
}

// TestLargeChain: descriptors may describe the same memory again and again, but not more
// than the specification allows together.
func TestLargeChain(t *testing.T) {
	const size, part = 16 << 20, 8 << 20
	for _, c := range []struct {
		parts int
		bad   bool
	}{{maxChainBytes/part - 1, false}, {maxChainBytes / part, false}, {maxChainBytes/part + 1, true}} {
		m := make(ram, size)
		q := testQueue(t, m, FeatureIndirectDesc, nil)
		m.desc(0, 0, testData, uint32(c.parts+1)*descSize, descIndirect, 0)
		for i := range c.parts {
			flags := uint16(descNext)
			if i == c.parts-1 {
				flags = 0
			}
			m.desc(testData, i, part, part, flags, uint16(i+1))
		}
		m.publish(0)
		var chain Chain
		if _, err := q.Pop(&chain); errors.Is(err, ErrMalformed) != c.bad {
			t.Errorf("%d parts of %d bytes: %v", c.parts, part, err)
		}
	}
}

func TestLayouts(t *testing.T) {
	m := make(ram, testRAM)
	for _, l := range []Layout{
		{0, testDesc, testAvail, testUsed}, {3, testDesc, testAvail, testUsed},
		{testSize, testDesc + 8, testAvail, testUsed}, {testSize, testDesc, testAvail + 1, testUsed},
		{testSize, testDesc, testAvail, testUsed + 2}, {testSize, testRAM - 16, testAvail, testUsed},
		{testSize, testDesc, testRAM - 4, testUsed}, {testSize, testDesc, testAvail, ^uint64(3)},
	} {
		if _, err := NewQueue(m, l, 0, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

// TestNotify holds the two ways by which a driver says whether it wants an
// interrupt.
func TestNotify(t *testing.T) {
	m, n := make(ram, testRAM), 0
	q := testQueue(t, m, 0, func() { n++ })
	push := func(k int) {
		for range k {
			q.Push(&Chain{}, 0)
		}
		q.Notify()
	}
	push(1)
	push(0) // nothing new
	if n != 1 {
		t.Errorf("%d interrupts, want 1", n)
	}
	binary.LittleEndian.PutUint16(m[testAvail:], noInterrupt)
	if push(1); n != 1 {
		t.Error("an interrupt that was not wanted")
	}

	m, n = make(ram, testRAM), 0
	q = testQueue(t, m, FeatureEventIdx, func() { n++ })
	event := func(v uint16) { binary.LittleEndian.PutUint16(m[testAvail+4+2*testSize:], v) }
	event(2) // after the third
	for i, want := range []int{0, 0, 1, 1, 1} {
		if push(1); n != want {
			t.Errorf("after push %d: %d interrupts, want %d", i+1, n, want)
		}
	}
	event(6)
	if push(3); n != 2 {
		t.Errorf("a batch that passes the event: %d interrupts, want 2", n)
	}
}

func TestKicks(t *testing.T) {
	m := make(ram, testRAM)
	m.desc(0, 0, testData, 1, 0, 0)
	q := testQueue(t, m, 0, nil)
	q.DisableKicks()
	if m[testUsed] != noNotify {
		t.Error("kicks are not disabled")
	}
	m.publish(0)
	if q.EnableKicks() || m[testUsed] != 0 {
		t.Error("a chain that has no kick was not seen")
	}
	if ok, err := q.Pop(&Chain{}); !ok || err != nil || !q.EnableKicks() {
		t.Error("the queue is not empty")
	}
}

// FuzzQueue lets the guest write anything into its queue.
func FuzzQueue(f *testing.F) {
	m := make(ram, testData+0x400)
	m.desc(0, 0, testData, 48, descIndirect, 0)
	m.desc(testData, 0, testData+0x100, 16, descNext, 1)
	m.desc(testData, 1, testData+0x200, 16, descWrite, 0)
	m.publish(0)
	f.Add([]byte(m[:128]), []byte(m[testAvail:testAvail+32]), []byte(m[testData:testData+64]), uint64(FeatureIndirectDesc))
	f.Fuzz(func(t *testing.T, desc, avail, data []byte, features uint64) {
		m := make(ram, testRAM)
		copy(m, desc[:min(len(desc), 16*testSize)])
		copy(m[testAvail:], avail[:min(len(avail), 0x100)])
		copy(m[testData:], data[:min(len(data), 0x4000)])
		q := testQueue(t, m, features, func() {})
		var c Chain
		for range 2 * testSize {
			ok, err := q.Pop(&c)
			if err != nil || !ok {
				break
			}
			n := 0
			for _, b := range append(c.Readable, c.Writable...) {
				n += len(b)
			}
			if n == 0 {
				t.Fatal("an empty chain")
			}
			q.Push(&c, uint32(n))
			q.Notify()
			q.EnableKicks()
		}
	})
}

func (ram) MarkDirty([]byte) {}
