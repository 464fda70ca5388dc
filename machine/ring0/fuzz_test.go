package ring0

import (
	"sync/atomic"
	"testing"

	"golang.org/x/arch/x86/x86asm"

	"vmm/internal/x86"
	"vmm/kvm"
)

// x86asmWrong tells where the reference decoder's length is not to be
// trusted: it does not know some prefixes and the newer encodings.
func x86asmWrong(code []byte, i x86asm.Inst) bool {
	if i.Op == 0 {
		return true
	}
	for _, p := range i.Prefix {
		if p != 0 && p&x86asm.PrefixInvalid != 0 {
			return true
		}
	}
	for k, b := range code {
		switch {
		case b == 0x66 || b == 0x67 || b == 0xf0 || b == 0xf2 || b == 0xf3 || b&0xf0 == 0x40 ||
			b == 0x2e || b == 0x36 || b == 0x3e || b == 0x26 || b == 0x64 || b == 0x65:
			continue
		case b == 0x62 || b == 0xc4 || b == 0xc5:
			return true // EVEX and VEX
		case b >= 0xd8 && b <= 0xdf:
			return true // it rejects and shortens some of x87
		case b == 0x0f && k+1 < len(code):
			return code[k+1] >= 0x10 && code[k+1] != 0xa2 && (code[k+1] < 0x40 || code[k+1] >= 0x50 && code[k+1] < 0x80)
		}
		break
	}
	return false
}

// FuzzDecode wants no panic on any bytes, and the length that another decoder
// sees.
func FuzzDecode(f *testing.F) {
	for _, c := range [][]byte{{0x48, 0x8b, 0x04, 0x25, 1, 2, 3, 4}, {0xf0, 0x48, 0x0f, 0xc7, 0x0f}, {0x62, 0xf1, 0x65, 8, 0x72, 0xc3, 0x10},
		{0xc5, 0xfa, 0x6f, 7}, {0xf3, 0x48, 0xab}, {0x66, 0x0f, 0x38, 0x82, 0x08}, {0x0f, 1, 0xca}, {0xcc}, {0x48, 0x0f, 7}} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		var in inst
		if !decode(code, &in) {
			return
		}
		if int(in.len) > len(code) || in.len == 0 || in.len > 15 {
			t.Fatalf("% x: length %d", code, in.len)
		}
		want, err := x86asm.Decode(code, 64)
		if err == nil && !x86asmWrong(code, want) && want.Len != int(in.len) {
			t.Errorf("% x: length %d, want %d (%v)", code, in.len, want.Len, want)
		}
	})
}

// fuzzMemory is RAM of fuzzPages pages that begins with page tables.
type fuzzMemory [][pageSize]byte

const fuzzPages = 16

func (m fuzzMemory) Size() uint64 { return fuzzPages * pageSize }
func (m fuzzMemory) Page(gpa uint64) *[pageSize]byte {
	if gpa >= m.Size() {
		return nil
	}
	return &m[gpa>>12]
}

// fuzzHost does nothing, and does it well.
type fuzzHost struct{ area [4096]byte }

func (h *fuzzHost) XSave(a []byte) error       { copy(a, h.area[:]); return nil }
func (h *fuzzHost) SetXSave(a []byte) error    { copy(h.area[:], a); return nil }
func (h *fuzzHost) XSaveSize() int             { return len(h.area) }
func (h *fuzzHost) XCR0() (uint64, error)      { return 0xe7, nil }
func (h *fuzzHost) MSR(uint32) (uint64, error) { return 0x0023001000000000, nil }
func (h *fuzzHost) TSC() uint64                { return 0 }

// fuzzCPU returns an executor in front of code, with all of its memory mapped
// to itself, tables included: the guest may do its worst to itself.
func fuzzCPU(t testing.TB, code []byte) *CPU {
	t.Helper()
	mem := make(fuzzMemory, fuzzPages)
	le.PutUint64(mem[1][:], 0x2000|x86.PTEPresent|x86.PTEWritable|x86.PTEUser)
	le.PutUint64(mem[2][:], 0x3000|x86.PTEPresent|x86.PTEWritable|x86.PTEUser)
	le.PutUint64(mem[3][:], 0x4000|x86.PTEPresent|x86.PTEWritable|x86.PTEUser)
	for i := range uint64(fuzzPages + 4) { // some beyond RAM
		le.PutUint64(mem[4][8*i:], i<<12|x86.PTEPresent|x86.PTEWritable|i%3/2*x86.PTEUser)
	}
	copy(mem[8][:], code)
	c, err := New(&fuzzHost{}, NewTables(mem, func(uint64) error { return nil }), [64]Component{
		2: {Offset: 576, Size: 256}, 5: {Offset: 832, Size: 64}, 6: {Offset: 896, Size: 512}, 7: {Offset: 1408, Size: 1024}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Load(&kvm.Regs{RIP: 0x8000, RSP: 0xa000, RAX: 0x9000, RBX: 0x9080, RCX: 3, RSI: 0x9100, RDI: 0x9200, RFLAGS: 2},
		&kvm.Sregs{CR3: 0x1000, CR0: x86.CR0PG | x86.CR0WP | 1, CR4: x86.CR4PAE | x86.CR4SMAP, EFER: x86.EFERLMA | x86.EFERNXE,
			CS: flatSegment(0x10, true, 0), SS: flatSegment(0x18, false, 0)})
	return c
}

// FuzzExecute runs any code and wants no panic.
func FuzzExecute(f *testing.F) {
	f.Add([]byte{0x48, 0x01, 0x03, 0xf3, 0xa4, 0x0f, 0x01, 0xca})
	f.Add([]byte{0x48, 0x0f, 0xae, 0x23, 0x48, 0x0f, 0xae, 0x2b, 0xf0, 0x48, 0x0f, 0xc7, 0x0b})
	f.Add([]byte{0xc5, 0xfa, 0x6f, 0x07, 0xcf, 0x48, 0xcf, 0x48, 0x0f, 0x07})
	f.Fuzz(func(t *testing.T, code []byte) {
		c := fuzzCPU(t, code[:min(len(code), 64)])
		c.EnterUser()
		c.LeaveUser()
		for range 4 {
			n, stop := c.Execute(300, false, new(atomic.Bool))
			if n < 0 || n > 301 {
				t.Fatalf("executed %d", n)
			}
			if stop != StopBudget || !c.CanExecute() {
				break
			}
		}
		if err := c.Stored(); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkExecute measures a loop of loads, stores, arithmetic and a jump.
func BenchmarkExecute(b *testing.B) {
	c := fuzzCPU(b, []byte{
		0x48, 0x8b, 0x03, // mov rax, [rbx]
		0x48, 0xff, 0xc0, // inc rax
		0x48, 0x89, 0x03, // mov [rbx], rax
		0x85, 0xc0, // test eax, eax
		0xeb, 0xf3, // jmp
	})
	b.ReportAllocs()
	stopped := new(atomic.Bool)
	for n := 0; n < b.N; {
		k, _ := c.Execute(min(10000, b.N-n), false, stopped)
		n += k
	}
}

func (m fuzzMemory) WritePage(uint64) {}

func (m fuzzMemory) Mapped(uint64, bool) *[4096]byte { return nil }
