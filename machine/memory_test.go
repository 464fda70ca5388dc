package machine

import (
	"bytes"
	"testing"
)

func TestPieces(t *testing.T) {
	ram := [][]byte{{0, 1, 2, 3}, {4, 5, 6}}
	for off := range int64(7) {
		for n := range 7 - off + 1 {
			got := bytes.Join(pieces(ram, off, n), nil)
			if want := []byte{0, 1, 2, 3, 4, 5, 6}[off : off+n]; !bytes.Equal(got, want) {
				t.Errorf("%d bytes at %d: %v", n, off, got)
			}
		}
	}
}
