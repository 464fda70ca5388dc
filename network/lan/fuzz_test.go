package lan

import (
	"bytes"
	"testing"

	"vmm/network/ether"
)

// FuzzStream lets the other side of a stream say anything.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 0, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newStreamReader(bytes.NewReader(data))
		b := make([]byte, maxMessage)
		for total := 0; ; {
			n, err := r.read(b)
			if err != nil {
				return
			}
			if total += n - ether.HeaderSize + 4; total > len(data) {
				t.Fatalf("%d bytes of %d", total, len(data))
			}
		}
	})
}
