package ring0

import (
	"testing"

	"vmm/kvm"
)

// TestCompatibilityMode executes what 32-bit programs consist of in user mode of a kernel in
// long mode.
func TestCompatibilityMode(t *testing.T) {
	const ldt = 0xe000 // with one code segment of 11 bytes
	data := func(c *CPU, at uint64) uint64 { return le.Uint64(c.tables.mem.(fuzzMemory)[at>>12][at&pageMask:]) }
	for _, tt := range []struct {
		name  string
		code  []byte
		n     int // instructions
		setUp func(*CPU)
		check func(*CPU) bool
	}{
		{"data below the base of GS, as a thread's are", []byte{0x65, 0x8b, 0x12}, 1, // mov edx, gs:[edx]
			func(c *CPU) { c.r[rDX] = 0xffffffd0 }, func(c *CPU) bool { return c.r[rDX] == 0x76543210 }},
		{"a string there", []byte{0x65, 0xad}, 1, // lodsd gs:
			func(c *CPU) { c.r[rSI] = 0xffffffd0 }, func(c *CPU) bool { return c.r[rAX] == 0x76543210 && c.r[rSI] == 0xffffffd4 }},
		{"a bit there", []byte{0x65, 0x0f, 0xa3, 0x0a}, 1, // bt gs:[edx], ecx
			func(c *CPU) { c.r[rDX], c.r[rCX] = 0xffffffd8, 0xffffffc4 }, func(c *CPU) bool { return c.cf == 1 }},
		{"SSE to memory", []byte{0x66, 0x0f, 0x76, 0xc0, 0x66, 0x0f, 0x7f, 0x42, 0x20}, 2, // pcmpeqd xmm0, xmm0; movdqa [edx+0x20], xmm0
			func(c *CPU) { c.r[rDX] = 0xffffffff00000000 | userStack },
			func(c *CPU) bool {
				return data(c, userStack+0x20) == ^uint64(0) && data(c, userStack+0x28) == ^uint64(0)
			}},
		{"x87 to memory of a segment", []byte{0xd9, 0xe8, 0x65, 0xdd, 0x5a, 0xe0}, 2, // fld1; fstp qword gs:[edx-0x20]
			nil, func(c *CPU) bool { return data(c, userStack+0xe0) == 0x3ff0000000000000 }},
		{"what is a prefix in 64-bit code between SSE", []byte{0x0f, 0x57, 0xc0, 0x40, 0x0f, 0x28, 0xc8}, 3, // xorps xmm0, xmm0; inc eax; movaps xmm1, xmm0
			nil, func(c *CPU) bool { return c.r[rAX] == 1 && c.r[rIP] == userCode+7 }},
		{"a limit in the GDT", []byte{0x0f, 0x03, 0xc1}, 1, // lsl eax, ecx
			func(c *CPU) { c.r[rCX] = 0x1b }, func(c *CPU) bool { return c.r[rAX] == 0xffffffff && c.zv == 0 }},
		{"a limit in the LDT", []byte{0x0f, 0x03, 0xc1}, 1,
			func(c *CPU) { c.r[rCX] = 7 }, func(c *CPU) bool { return c.r[rAX] == 10 && c.zv == 0 }},
		{"the limit of a segment of the kernel's", []byte{0x0f, 0x03, 0xc1}, 1,
			func(c *CPU) { c.r[rCX] = 0x10 }, func(c *CPU) bool { return c.r[rAX] == 0 && c.zv != 0 }},
		{"a stack of 16 bits", []byte{0x58}, 1, // pop eax
			func(c *CPU) { c.sregs.SS.DB, c.r[rSP] = 0, 0x120000|(userStack+0xd0) },
			func(c *CPU) bool { return c.r[rAX] == 0x76543210 && c.r[rSP] == 0x120000|(userStack+0xd4) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := completeCPU(t, tt.code...)
			mem := c.tables.mem.(fuzzMemory)
			le.PutUint32(mem[userStack>>12][userStack&pageMask+0xd0:], 0x76543210)
			le.PutUint64(mem[ldt>>12][:], 0x0040fb000000000a)
			inUser(c, true)
			c.base[segGS] = userStack + 0x100
			c.sregs.LDT = kvm.Segment{Base: ldt, Limit: 7}
			if tt.setUp != nil {
				tt.setUp(c)
			}
			if stop := c.Run(tt.n); stop != StopBudget || !tt.check(c) {
				t.Errorf("%v at %#x, RAX %#x, RDX %#x, RSI %#x, RSP %#x, flags %#x", stop, c.r[rIP], c.r[rAX], c.r[rDX], c.r[rSI], c.r[rSP], c.flags())
			}
		})
	}
}

// TestNullSegments returns to user mode with selectors of no segment, which are 0 there
// whatever their privilege level was.
func TestNullSegments(t *testing.T) {
	c, _ := completeCPU(t, 0x48, 0xcf) // iretq
	for i, v := range []uint64{userCode, 0x2b, 2, userStack, 0x23} {
		c.store(c.r[rSP]+8*uint64(i), v, 8)
	}
	c.sregs.FS, c.base[segFS] = kvm.Segment{Selector: 3, Unusable: 1}, 0x1234
	if stop := c.Run(1); stop != StopBudget || c.cpl != 3 || c.sregs.FS.Selector != 0 || c.base[segFS] != 0x1234 {
		t.Errorf("%v, level %d, FS %#x with base %#x", stop, c.cpl, c.sregs.FS.Selector, c.base[segFS])
	}
}

// TestNarrowAddresses executes SSE in 64-bit code whose operand has a 32-bit address, as x32
// programs have.
func TestNarrowAddresses(t *testing.T) {
	c, _ := completeCPU(t, 0x66, 0x0f, 0x76, 0xc0, 0x67, 0x66, 0x0f, 0x7f, 0x02) // pcmpeqd xmm0, xmm0; movdqa [edx], xmm0
	inUser(c, false)
	c.r[rDX] = 0x700000000 | userStack
	if stop := c.Run(2); stop != StopBudget || c.RIP() != userCode+9 {
		t.Fatalf("%v at %#x", stop, c.RIP())
	}
	if v, _ := c.load(userStack+8, 8); v != ^uint64(0) {
		t.Errorf("%#x was stored", v)
	}
}
