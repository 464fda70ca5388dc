package agent

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteInPieces: what a kernel has no memory for at once goes a little at a time.
func TestWriteInPieces(t *testing.T) {
	const size = 100_000
	data := bytes.Repeat([]byte("0123456789"), size/10)
	for _, c := range []struct {
		name        string
		whole, most int // what one write takes before it lacks memory, and what it has memory for
		want        int
		err         error
	}{
		{"all at once", size, size, size, nil},
		{"nothing of it", 0, pieceSize, size, nil},
		{"a part of it", 70_000, pieceSize, size, nil},
		{"no memory at all", 70_000, 0, 70_000, unix.ENOMEM},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []byte
			n, err := writeInPieces(func(b []byte) (int, error) {
				n := len(b)
				if n > c.most {
					n = min(n, c.whole-min(c.whole, len(got)))
				}
				got = append(got, b[:n]...)
				if n < len(b) {
					return n, &os.PathError{Op: "write", Path: "vsock", Err: unix.ENOMEM}
				}
				return n, nil
			}, data)
			if n != c.want || !errors.Is(err, c.err) || !bytes.Equal(got, data[:c.want]) {
				t.Errorf("%d bytes, %v; %d arrived", n, err, len(got))
			}
		})
	}
}
