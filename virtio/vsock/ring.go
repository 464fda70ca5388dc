package vsock

// ring is a queue of bytes that grows as needed, to a power of two.
type ring struct {
	buf      []byte
	start, n int
}

const minRing = 4 << 10

// put adds bytes at the end.
func (r *ring) put(b []byte) {
	if r.n+len(b) > len(r.buf) {
		size := max(len(r.buf), minRing)
		for size < r.n+len(b) {
			size *= 2
		}
		grown := make([]byte, size)
		k := copy(grown, r.front())
		copy(grown[k:], r.buf[:r.n-k])
		r.buf, r.start = grown, 0
	}
	end := (r.start + r.n) & (len(r.buf) - 1)
	if len(b) > 0 {
		copy(r.buf, b[copy(r.buf[end:], b):])
		r.n += len(b)
	}
}

// front is what lies at the beginning, in one piece.
func (r *ring) front() []byte { return r.buf[r.start:min(r.start+r.n, len(r.buf))] }

// drop takes n bytes from the beginning.
func (r *ring) drop(n int) {
	if r.n -= n; r.n == 0 {
		r.start = 0
		return
	}
	r.start = (r.start + n) & (len(r.buf) - 1)
}
