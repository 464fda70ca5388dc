package holes

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNext(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size, data, length = 4 << 20, 1 << 20, 64 << 10
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, length), data); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ off, end, from, to int64 }{
		{0, size, data, data + length},
		{data + 4096, size, data + 4096, data + length},
		{data, data + 4096, data, data + 4096},
		{0, data, data, data},
		{data + length, size, size, size},
		{size, size, size, size},
		{size + 1, size + 5, size + 5, size + 5},
	} {
		from, to, err := Next(int(f.Fd()), c.off, c.end)
		if err != nil || from != c.from || to != c.to {
			t.Errorf("from %d to %d: %d to %d, %v, not %d to %d", c.off, c.end, from, to, err, c.from, c.to)
		}
	}
	if _, _, err := Next(-1, 0, 1); err == nil {
		t.Error("no error of a file that is not open")
	}
}
