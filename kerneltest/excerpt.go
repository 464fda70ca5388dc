package kerneltest

import "fmt"

// maxExcerpt bounds what is kept of a VM's stream: a guest prints as much as it likes.
const maxExcerpt = 32 << 20 // bytes

// excerpt keeps the beginning and the end of what is written to it.
type excerpt struct {
	half int // how much of each, in bytes
	head []byte
	tail []byte // a ring once it is full
	at   int    // where the ring's next byte goes
	lost int64  // bytes that the ring has forgotten
}

// Write implements io.Writer.
func (e *excerpt) Write(p []byte) (int, error) {
	n := len(p)
	k := min(e.half-len(e.head), len(p))
	e.head, p = append(e.head, p[:k]...), p[k:]
	k = min(e.half-len(e.tail), len(p))
	e.tail, p = append(e.tail, p[:k]...), p[k:]
	e.lost += int64(len(p))
	for len(p) > 0 {
		k := copy(e.tail[e.at:], p)
		e.at, p = (e.at+k)%e.half, p[k:]
	}
	return n, nil
}

// String is what was kept; a line of its own says what is missing between.
func (e *excerpt) String() string {
	gap := ""
	if e.lost > 0 {
		gap = fmt.Sprintf("\n[%d bytes left out]\n", e.lost)
	}
	return string(e.head) + gap + string(e.tail[e.at:]) + string(e.tail[:e.at])
}
