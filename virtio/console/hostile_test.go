package console

import (
	"sync"
	"testing"

	"vmm/virtio/virtiotest"
)

// pieces notes the sizes of what it is written.
type pieces struct {
	mu             sync.Mutex
	largest, total int
}

func (p *pieces) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.largest, p.total = max(p.largest, len(b)), p.total+len(b)
	return len(b), nil
}

// TestLargeWrites: what the guest writes at once goes on in pieces, and is bounded.
func TestLargeWrites(t *testing.T) {
	for _, c := range []struct {
		name  string
		parts []uint32
		ok    bool
	}{
		{"the most", []uint32{maxWrite}, true},
		{"the most in parts", []uint32{1, maxPiece + 1, maxWrite - maxPiece - 2}, true},
		{"a byte more", []uint32{maxWrite, 1}, false},
		{"all memory", []uint32{memory}, false},
		{"all memory again and again", []uint32{memory, memory, memory, memory, memory, memory, memory, memory}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := &pieces{}
			d, err := New(out)
			if err != nil {
				t.Fatal(err)
			}
			g := start(t, d)
			var chain []virtiotest.Buffer
			want := 0
			for _, n := range c.parts {
				chain = append(chain, virtiotest.Buffer{Len: n})
				want += int(n)
			}
			tx := g.g.Queues[1]
			from := tx.Added()
			tx.Add(chain...)
			tx.Kick(from)
			if c.ok {
				tx.Wait()
			} else {
				for !g.g.NeedsReset() {
				}
				want = 0
			}
			out.mu.Lock()
			defer out.mu.Unlock()
			if out.total != want || out.largest > maxPiece {
				t.Errorf("%d bytes in pieces of up to %d, want %d in %d", out.total, out.largest, want, maxPiece)
			}
		})
	}
}
