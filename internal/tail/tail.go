// Package tail keeps the end of a text.
package tail

import (
	"strings"
	"sync"
)

// Size is how much a Buffer keeps at least, in bytes; it never has more than twice that.
const Size = 64 << 10

// Buffer keeps the last of what is written to it. The zero value is empty. Its methods
// can be called at the same time.
type Buffer struct {
	mu   sync.Mutex
	last []byte
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p) > Size {
		b.last = append(b.last[:0], p[len(p)-Size:]...)
	} else if b.last = append(b.last, p...); len(b.last) > 2*Size {
		b.last = append(b.last[:0], b.last[len(b.last)-Size:]...)
	}
	return len(p), nil
}

// String is what it has kept.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.last)
}

// Lines returns the last n lines of a text, without carriage returns and without what is
// empty at its end.
func Lines(s string, n int) []string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(s, "\r", ""), "\n"), "\n")
	return lines[max(0, len(lines)-n):]
}
