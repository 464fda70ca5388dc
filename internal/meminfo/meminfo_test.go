package meminfo

import "testing"

func TestValue(t *testing.T) {
	if total, free := Value("MemTotal"), Value("MemAvailable"); total == 0 || free == 0 || free > total {
		t.Errorf("%d KiB of %d are available", free, total)
	}
	if n := Value("Mem"); n != 0 {
		t.Errorf("there is a Mem: %d", n)
	}
}
