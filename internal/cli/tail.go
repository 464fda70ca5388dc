package cli

import (
	"io"
	"strings"
	"sync"
)

// tail keeps the last of what is written to it, and passes all on.
type tail struct {
	io.Writer

	mu   sync.Mutex
	last []byte
}

// tailSize is how much a tail keeps at least, in bytes.
const tailSize = 64 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	if t.last = append(t.last, p...); len(t.last) > 2*tailSize {
		t.last = append(t.last[:0], t.last[len(t.last)-tailSize:]...)
	}
	t.mu.Unlock()
	return t.Writer.Write(p)
}

// lines returns the last n lines.
func (t *tail) lines(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastLines(string(t.last), n)
}

// lastLines are the last n lines of a text.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(s, "\r", ""), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
