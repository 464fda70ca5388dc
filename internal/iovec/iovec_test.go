package iovec

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

func vector() [][]byte { return [][]byte{{1, 2}, {}, {3}, {4, 5, 6}} }

// TestCut cuts all parts there are, also in place.
func TestCut(t *testing.T) {
	whole := []byte{1, 2, 3, 4, 5, 6}
	for off := range len(whole) + 2 {
		for n := range len(whole) + 2 {
			want := whole[min(off, 6):min(off+n, 6)]
			v := vector()
			for _, got := range [][][]byte{Cut(nil, v, int64(off), int64(n)), Cut(v[:0], v, int64(off), int64(n))} {
				if b := bytes.Join(got, nil); !bytes.Equal(b, want) {
					t.Errorf("%d bytes from %d: %v, not %v", n, off, b, want)
				}
				if Len(got) != len(want) {
					t.Errorf("%d bytes from %d: %d", n, off, Len(got))
				}
			}
		}
		if b := bytes.Join(Skip(nil, vector(), off), nil); !bytes.Equal(b, whole[min(off, 6):]) {
			t.Errorf("after %d: %v", off, b)
		}
	}
}

func TestCopy(t *testing.T) {
	for n := range 9 {
		b := make([]byte, n)
		if got := Gather(b, vector()); got != min(n, 6) || !bytes.Equal(b[:got], []byte{1, 2, 3, 4, 5, 6}[:got]) {
			t.Errorf("gathered %d of %d: %v", got, n, b)
		}
		v := vector()
		Clear(v)
		from := []byte{9, 8, 7, 6, 5, 4, 3, 2}[:min(n, 8)]
		got := Scatter(v, from)
		want := append(append([]byte{}, from[:got]...), make([]byte, 6-got)...)
		if b := bytes.Join(v, nil); got != min(len(from), 6) || !bytes.Equal(b, want) {
			t.Errorf("scattered %d of %d: %v", got, len(from), b)
		}
	}
}

func TestAppend(t *testing.T) {
	v := vector()
	got := Append(make([]unix.Iovec, 0, 4), v...)
	if len(got) != 3 || got[0].Base != &v[0][0] || got[1].Base != &v[2][0] || got[2].Len != 3 {
		t.Errorf("%+v", got)
	}
}

// TestAllocations wants none where requests and packets go by.
func TestAllocations(t *testing.T) {
	v, parts, iov, b := vector(), make([][]byte, 0, 4), make([]unix.Iovec, 0, 5), make([]byte, 6)
	if n := testing.AllocsPerRun(100, func() {
		parts = Cut(parts[:0], v, 1, 3)
		iov = Append(Append(iov[:0], b), parts...)
		Gather(b, v)
		Scatter(v, b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
