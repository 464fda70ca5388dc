package ring0

import "testing"

// TestRegions: what is in the set is found, and of other regions few seem to be in it, while a
// kernel has all of its memory there.
func TestRegions(t *testing.T) {
	const memory, vmalloc, program = 0xffff888000000000, 0xffffc90000000000, 0x7ffd12345000
	for _, shift := range []uint{largeShift, giantShift} {
		var r regions
		for n := range uint64(256) {
			r.add(memory>>shift + n)
		}
		for n := range uint64(256) {
			if !r.mayHave(memory>>shift + n) {
				t.Errorf("region %d of %d bits is not found", n, shift)
			}
		}
		for _, from := range []uint64{0, program, vmalloc} {
			seem := 0
			for n := range uint64(1000) {
				if r.mayHave(from>>shift + n) {
					seem++
				}
			}
			if seem > 60 {
				t.Errorf("%d of 1000 regions of %d bits from %#x on seem to be in the set", seem, shift, from)
			}
		}
	}
}
