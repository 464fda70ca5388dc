package ring0

import (
	"os"
	"testing"
)

func TestZZ(t *testing.T) {
	cpu, _ := completeCPU(t, 0x90)
	if err := cpu.Translate(); err != nil {
		t.Fatal(err)
	}
	page := cpu.tables.mem.Page(kernelCode)
	code := []byte{0x48, 0x01, 0x05, 0, 0x10, 0, 0, 0x48, 0x83, 0xc0, 1, 0x48, 0x3d, 0, 0xe1, 0xf5, 5, 0x75, 0xed}
	copy(page[0x40:], code)
	tr := cpu.translator
	n := tr.n
	tr.translate(page[0x40:], nil, 0)
	os.WriteFile("/tmp/w/zz.bin", tr.b[n:tr.n], 0o644)
}
