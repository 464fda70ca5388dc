package ring0

import (
	"sync/atomic"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// TestOwn holds the instructions that KVM does not know to known answers.
func TestOwn(t *testing.T) {
	for _, c := range []struct {
		name  string
		code  []byte
		setup map[int]uint64
		want  map[int]uint64
		flags uint64 // of ZF and CF
	}{
		{"popcnt", []byte{0xf3, 0x48, 0x0f, 0xb8, 0xc2}, map[int]uint64{rDX: 0xff00ff0000000001}, map[int]uint64{rAX: 17}, 0},
		{"popcnt 0", []byte{0xf3, 0x0f, 0xb8, 0xc2}, map[int]uint64{rDX: 1 << 40}, map[int]uint64{rAX: 0}, flagZF},
		{"tzcnt", []byte{0xf3, 0x48, 0x0f, 0xbc, 0xc2}, map[int]uint64{rDX: 0x100}, map[int]uint64{rAX: 8}, 0},
		{"tzcnt 0", []byte{0xf3, 0x0f, 0xbc, 0xc2}, nil, map[int]uint64{rAX: 32}, flagCF},
		{"lzcnt", []byte{0xf3, 0x0f, 0xbd, 0xc2}, map[int]uint64{rDX: 1}, map[int]uint64{rAX: 31}, 0},
		{"bsf", []byte{0x48, 0x0f, 0xbc, 0xc2}, map[int]uint64{rDX: 0x40}, map[int]uint64{rAX: 6}, 0},
		{"bsr", []byte{0x48, 0x0f, 0xbd, 0xc2}, map[int]uint64{rDX: 0x40f}, map[int]uint64{rAX: 10}, 0},
		{"bsf 0", []byte{0x48, 0x0f, 0xbc, 0xc2}, map[int]uint64{rAX: 77}, map[int]uint64{rAX: 77}, flagZF},
		{"crc32", []byte{0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc2}, map[int]uint64{rDX: 0x1122334455667788}, map[int]uint64{rAX: 0x2371e39c}, 0},
		{"movbe", []byte{0x48, 0x0f, 0x38, 0xf1, 0x13, 0x48, 0x8b, 0x0b}, map[int]uint64{rDX: 0x0102030405060708}, map[int]uint64{rCX: 0x0807060504030201}, 0},
		{"cmpxchg16b equal", []byte{0x48, 0x0f, 0xc7, 0x0b, 0x48, 0x8b, 0x13}, map[int]uint64{rAX: 0, rDX: 0, rCX: 9}, map[int]uint64{rDX: 0x9080}, flagZF},
		{"cmpxchg16b other", []byte{0x48, 0x0f, 0xc7, 0x0b}, map[int]uint64{rAX: 5, rDX: 6}, map[int]uint64{rAX: 0, rDX: 0}, 0},
		{"stac clac", []byte{0x0f, 0x01, 0xcb, 0x9c, 0x58, 0x0f, 0x01, 0xca}, nil, map[int]uint64{rAX: 2 | flagAC}, 0},
		{"fsgsbase", []byte{0xf3, 0x48, 0x0f, 0xae, 0xd2, 0xf3, 0x48, 0x0f, 0xae, 0xc0}, map[int]uint64{rDX: 0x1234}, map[int]uint64{rAX: 0x1234}, 0},
		{"swapgs", []byte{0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xc8}, nil, map[int]uint64{rAX: 0x5000}, 0},
		{"xgetbv", []byte{0x0f, 0x01, 0xd0}, map[int]uint64{rCX: 0}, map[int]uint64{rAX: 0xe7, rDX: 0}, 0},
		{"vmcall", []byte{0x0f, 0x01, 0xc1}, nil, map[int]uint64{rAX: ^uint64(999)}, 0},
		{"verw", []byte{0x0f, 0x00, 0xea}, map[int]uint64{rDX: 0x18}, nil, flagZF},
		{"lsl", []byte{0x48, 0x0f, 0x03, 0xc2}, map[int]uint64{rDX: 0x0b}, map[int]uint64{rAX: 0x12345}, flagZF},
		{"lsl of nothing", []byte{0x48, 0x0f, 0x03, 0xc2}, map[int]uint64{rDX: 0x7b, rAX: 9}, map[int]uint64{rAX: 9}, 0},
		{"vldmxcsr vstmxcsr", []byte{0xc5, 0xf8, 0xae, 0x13, 0xc5, 0xf8, 0xae, 0x5b, 0x08, 0x8b, 0x53, 0x08}, map[int]uint64{rDX: 5}, map[int]uint64{rDX: 0}, 0},
		{"fwait", []byte{0x9b}, nil, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cpu := fuzzCPU(t, append(c.code, 0xcc))
			cpu.kernelGSBase = 0x5000
			cpu.sregs.GDT = kvm.DTable{Base: 0x9800, Limit: 15}
			cpu.store(0x9808, 0x0041f30000002345, 8) // data, of 0x12345 bytes and one
			for _, r := range []int{rAX, rDX} {
				cpu.r[r] = 0
			}
			for r, v := range c.setup {
				cpu.r[r] = v
			}
			_, stop := cpu.Execute(20, false, new(atomic.Bool))
			if stop != StopInject || cpu.Inject.Vector != vectorBP {
				t.Fatalf("stopped by %v at %#x", stop, cpu.RIP())
			}
			for r, v := range c.want {
				if cpu.r[r] != v {
					t.Errorf("register %d = %#x, want %#x", r, cpu.r[r], v)
				}
			}
			if f := cpu.flags() & (flagZF | flagCF); f != c.flags {
				t.Errorf("ZF and CF = %#x, want %#x", f, c.flags)
			}
		})
	}
}

// TestXSave saves in every form and restores from it.
func TestXSave(t *testing.T) {
	for name, save := range map[string][]byte{
		"xsave":    {0x48, 0x0f, 0xae, 0x27},
		"xsaveopt": {0x48, 0x0f, 0xae, 0x37},
		"xsavec":   {0x48, 0x0f, 0xc7, 0x27},
		"xsaves":   {0x48, 0x0f, 0xc7, 0x2f},
	} {
		t.Run(name, func(t *testing.T) {
			restore := []byte{0x48, 0x0f, 0xae, 0x2f} // xrstor [rdi]
			cpu := fuzzCPU(t, append(append(append([]byte{}, save...), restore...), 0xcc))
			cpu.r[rAX], cpu.r[rDX], cpu.r[rDI] = 0xe7, 0, 0xa000 // the stack's page, and the next
			h := cpu.host.(*fuzzHost)
			for i := range h.area[:2432] {
				h.area[i] = byte(i * 7)
			}
			le.PutUint32(h.area[xOffMXCSR:], defaultMXCSR)
			clear(h.area[xOffHeader:xEndHeader])
			le.PutUint64(h.area[xOffHeader:], 0xe7)
			want := h.area
			n, _ := cpu.Execute(1, false, new(atomic.Bool))
			if n != 1 {
				t.Fatal("the save was not executed")
			}
			h.area = [4096]byte{}
			clear(cpu.xarea)
			if _, stop := cpu.Execute(5, false, new(atomic.Bool)); stop != StopInject || cpu.Inject.Vector != vectorBP {
				t.Fatalf("stopped by %v, %+v", stop, cpu.Inject)
			}
			if err := cpu.StoreExtended(); err != nil {
				t.Fatal(err)
			}
			for i := range 2432 {
				if i >= xEndXMM && i < xEndHeader || i >= xOffMXCSR+4 && i < xOffX87Regs {
					continue // reserved, the header, and MXCSR_MASK, which is the CPU's
				}
				if h.area[i] != want[i] {
					t.Fatalf("byte %d = %#x, want %#x", i, h.area[i], want[i])
				}
			}
		})
	}
}

// TestFaultOfOwn wants a page fault where an instruction that KVM does not
// know reads what is not mapped.
func TestFaultOfOwn(t *testing.T) {
	cpu := fuzzCPU(t, []byte{0xf3, 0x48, 0x0f, 0xb8, 0x02}) // popcnt rax, [rdx]
	cpu.r[rDX] = 0x7000000
	rip := cpu.RIP()
	_, stop := cpu.Execute(5, false, new(atomic.Bool))
	if e := cpu.Inject; stop != StopInject || e.Vector != vectorPF || e.CR2 != 0x7000000 || e.Error != 0 || cpu.RIP() != rip {
		t.Errorf("stop %v, %+v at %#x", stop, e, cpu.RIP())
	}
}

// TestTablesBeyondRAM gives tables that lie where no memory is: the guest's
// fault, and no harm to the host.
func TestTablesBeyondRAM(t *testing.T) {
	for _, cr3 := range []uint64{0x7000000, 0xffffffffff000, ^uint64(0)} {
		cpu := fuzzCPU(t, []byte{0x90})
		cpu.sregs.CR3 = cr3
		cpu.FlushTLB()
		cpu.EnterUser()
		cpu.LeaveUser()
		if _, stop := cpu.Execute(1, false, new(atomic.Bool)); stop != StopKVM {
			t.Errorf("CR3 %#x: %v", cr3, stop)
		}
	}
	cpu := fuzzCPU(t, []byte{0x90})
	page := cpu.tables.mem.Page(0x1000)
	le.PutUint64(page[8:], 0xffffffffff000|x86.PTEPresent|x86.PTEWritable|x86.PTEUser)
	cpu.EnterUser()
	cpu.LeaveUser()
}

// TestTables wants stores to the tables of user mode to be left to KVM, and
// many of them to end that.
func TestTables(t *testing.T) {
	cpu := fuzzCPU(t, []byte{0x48, 0x89, 0x02, 0xeb, 0xfb}) // mov [rdx], rax; jmp back
	poked := 0
	cpu.tables.poke = func(gpa uint64) error {
		if gpa != 0x4000 {
			t.Errorf("poke of %#x", gpa)
		}
		poked++
		return nil
	}
	cpu.r[rDX] = 0x4100
	if n, stop := cpu.Execute(4, false, new(atomic.Bool)); n != 4 || stop != StopBudget {
		t.Fatalf("before user mode: %d, %v", n, stop)
	}
	cpu.EnterUser()
	cpu.LeaveUser()
	for i := range forgetAfter {
		if _, stop := cpu.Execute(4, false, new(atomic.Bool)); stop != StopKVM {
			t.Fatalf("store %d: %v", i, stop)
		}
		if err := cpu.Stored(); err != nil {
			t.Fatal(err)
		}
	}
	if _, stop := cpu.Execute(4, false, new(atomic.Bool)); stop != StopBudget || poked != 1 {
		t.Errorf("after many stores: %v, poked %d times", stop, poked)
	}
	cpu.EnterUser() // the page is a table again
	cpu.LeaveUser()
	if _, stop := cpu.Execute(4, false, new(atomic.Bool)); stop != StopKVM {
		t.Errorf("after user mode: %v", stop)
	}
}

// TestVector executes instructions of SSE and the x87 with operands in the guest's
// memory, also where a store faults behind one that does not.
func TestVector(t *testing.T) {
	run := func(t *testing.T, code []byte) *CPU {
		cpu := fuzzCPU(t, append(code, 0xcc))
		le.PutUint32(cpu.host.(*fuzzHost).area[xOffMXCSR:], defaultMXCSR)
		cpu.store(0x9000, 0x1111, 8)
		cpu.store(0x9008, 0x2222, 8)
		cpu.Execute(20, false, new(atomic.Bool))
		return cpu
	}
	paddq := []byte{0xf3, 0x0f, 0x6f, 0x00, 0x66, 0x0f, 0xd4, 0xc0} // movdqu xmm0, [rax]; paddq xmm0, xmm0
	t.Run("store", func(t *testing.T) {
		cpu := run(t, append(paddq, 0xf3, 0x0f, 0x7f, 0x40, 0x20)) // movdqu [rax+32], xmm0
		lo, _ := cpu.load(0x9020, 8)
		hi, _ := cpu.load(0x9028, 8)
		if lo != 0x2222 || hi != 0x4444 || cpu.Inject.Vector != vectorBP {
			t.Errorf("stored %#x %#x, %+v", lo, hi, cpu.Inject)
		}
	})
	t.Run("a fault loses nothing", func(t *testing.T) {
		cpu := run(t, append(paddq, 0x0f, 0x11, 0x04, 0x25, 0, 0, 0x10, 0)) // movups [0x100000], xmm0
		if cpu.Inject.Vector != vectorPF || cpu.Inject.CR2 != 0x100000 {
			t.Fatalf("%+v", cpu.Inject)
		}
		if err := cpu.StoreExtended(); err != nil {
			t.Fatal(err)
		}
		area := cpu.host.(*fuzzHost).area
		if lo := le.Uint64(area[xOffXMM:]); lo != 0x2222 || le.Uint64(area[xOffHeader:])&xSSE == 0 {
			t.Errorf("XMM0 is %#x", lo)
		}
	})
	t.Run("across the end of what is mapped", func(t *testing.T) {
		// The last page that there is is 0xf; movups [rdx], xmm0 goes on in the next.
		cpu := fuzzCPU(t, append(paddq, 0x0f, 0x11, 0x02, 0xcc))
		le.PutUint32(cpu.host.(*fuzzHost).area[xOffMXCSR:], defaultMXCSR)
		cpu.sregs.CR4 &^= x86.CR4SMAP
		cpu.updateSMAP()
		le.PutUint64(cpu.tables.mem.(fuzzMemory)[4][8*10:], 0) // and the one behind 9 is not mapped
		cpu.FlushTLB()
		cpu.r[rDX] = 0xa000 - 8
		cpu.Execute(20, false, new(atomic.Bool))
		if cpu.Inject.Vector != vectorPF || cpu.Inject.CR2 != 0xa000 || cpu.RIP() != 0x8008 {
			t.Fatalf("%+v at %#x", cpu.Inject, cpu.RIP())
		}
		// Eight bytes of it are none of the next page's: movq [rdx], xmm0.
		cpu = fuzzCPU(t, append(paddq, 0x66, 0x0f, 0xd6, 0x02, 0xcc))
		le.PutUint32(cpu.host.(*fuzzHost).area[xOffMXCSR:], defaultMXCSR)
		cpu.store(0x9000, 0x1111, 8)
		le.PutUint64(cpu.tables.mem.(fuzzMemory)[4][8*10:], 0)
		cpu.FlushTLB()
		cpu.r[rDX] = 0xa000 - 8
		cpu.Execute(20, false, new(atomic.Bool))
		if v, _ := cpu.load(0xa000-8, 8); v != 0x2222 || cpu.Inject.Vector != vectorBP {
			t.Errorf("%#x, %+v", v, cpu.Inject)
		}
	})
	t.Run("an exception", func(t *testing.T) {
		cpu := run(t, append(paddq, 0x0f, 0x28, 0x48, 0x08)) // movaps xmm1, [rax+8]
		if cpu.Inject.Vector != vectorGP || cpu.RIP() != 0x8008 {
			t.Errorf("%+v at %#x", cpu.Inject, cpu.RIP())
		}
	})
	t.Run("bytes that change behind the decoder's back", func(t *testing.T) {
		cpu := fuzzCPU(t, append(paddq, 0x66, 0x0f, 0xd4, 0xc0))
		le.PutUint32(cpu.host.(*fuzzHost).area[xOffMXCSR:], defaultMXCSR)
		insts := cpu.block()
		for a := uint64(0x8000); a < 0x8020; a++ {
			cpu.store(a, 0x0b0f>>(8*(a&1)), 1) // UD2
		}
		// The load, and the two additions behind it.
		if s := cpu.one(&insts[0]); s != done || cpu.RIP() != 0x800c {
			t.Errorf("%v at %#x, %+v", s, cpu.RIP(), cpu.Inject)
		}
	})
	t.Run("not enabled", func(t *testing.T) {
		cpu := fuzzCPU(t, []byte{0xc5, 0xf8, 0x77}) // vzeroupper
		cpu.xcr0Value, cpu.xcr0Known = xX87|xSSE, true
		if cpu.Execute(1, false, new(atomic.Bool)); cpu.Inject.Vector != vectorUD || cpu.RIP() != 0x8000 {
			t.Errorf("%+v at %#x", cpu.Inject, cpu.RIP())
		}
	})
}

// TestNotVector wants instructions left alone that access memory which their ModRM does
// not tell: the host's, if its CPU did them.
func TestNotVector(t *testing.T) {
	for name, code := range map[string][]byte{
		"maskmovq": {0x0f, 0xf7, 0xc1}, "maskmovdqu": {0x66, 0x0f, 0xf7, 0xc1}, "vmaskmovdqu": {0xc5, 0xf9, 0xf7, 0xc1},
		"movdir64b": {0x66, 0x0f, 0x38, 0xf8, 0x01}, "enqcmd": {0xf2, 0x0f, 0x38, 0xf8, 0x01}, "movdiri": {0x0f, 0x38, 0xf9, 0x01},
		"vpscatterdd": {0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x04, 0x08},
		"tileloadd":   {0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x08}, "ldtilecfg": {0xc4, 0xe2, 0x78, 0x49, 0x00},
		"xlat": {0xd7}, "syscall": {0x0f, 0x05}, "wrpkru": {0x0f, 0x01, 0xef},
	} {
		var in inst
		if decode(append(code, make([]byte, 8)...), &in) && in.form != (vectorForm{}) {
			t.Errorf("%s is executed natively", name)
		}
	}
}

// TestGather gathers on the host's CPU, whose memory is where its program is, and here.
func TestGather(t *testing.T) {
	// vpgatherdd ymm1, [rax+ymm2*4], ymm3; vpgatherqd xmm1, [rax+ymm2*2], xmm3; vgatherdpd ymm1, [rax+xmm2*8], ymm3
	for name, c := range map[string]struct {
		code  []byte
		index []uint64 // of qwords of the register
		scale uint64
		size  int
		of    int // bytes of an index
		n     int
	}{
		"vpgatherdd": {[]byte{0xc4, 0xe2, 0x65, 0x90, 0x0c, 0x90}, []uint64{1 | 3<<32, 0 | 2<<32, 7 | 5<<32, 4 | 6<<32}, 4, 4, 4, 8},
		"vpgatherqd": {[]byte{0xc4, 0xe2, 0x65, 0x91, 0x0c, 0x50}, []uint64{2, 0, 8, 6}, 2, 4, 8, 4},
		"vgatherdpd": {[]byte{0xc4, 0xe2, 0xe5, 0x92, 0x0c, 0xd0}, []uint64{1 | 3<<32, 0 | 2<<32, 0, 0}, 8, 8, 4, 4},
	} {
		t.Run(name, func(t *testing.T) {
			cpu := fuzzCPU(t, append(c.code, 0xcc))
			h := cpu.host.(*fuzzHost)
			cpu.components[2] = Component{Offset: 576, Size: 256}
			put := func(reg, i int, v uint64) {
				at := xOffXMM + 16*reg + 8*i
				if i > 1 {
					at = 576 + 16*reg + 8*(i-2)
				}
				le.PutUint64(h.area[at:], v)
			}
			for i, v := range c.index {
				put(2, i, v)
				put(3, i, ^uint64(0))
				put(1, i, 0x5555555555555555)
			}
			put(3, 0, ^uint64(0)&^(1<<31|1<<63)) // the first, or the first two, are left alone
			for i := range uint64(64) {
				cpu.store(0x9000+i, i+1, 1)
			}
			if _, stop := cpu.Execute(2, false, new(atomic.Bool)); stop != StopInject || cpu.Inject.Vector != vectorBP {
				t.Fatalf("%v, %+v", stop, cpu.Inject)
			}
			for i := range c.n {
				at := i * c.of
				index := c.index[at/8] >> (8 * (at % 8))
				if c.of == 4 {
					index &= 0xffffffff
				}
				want, _ := cpu.load(0x9000+index*c.scale, uint8(c.size))
				if i < 1 || c.size == 4 && i < 2 {
					want = 0x5555555555555555 >> (64 - 8*c.size)
				}
				if got := loadBytes(cpu.vectorPart(1, i*c.size, c.size)); got != want {
					t.Errorf("element %d is %#x, want %#x", i, got, want)
				}
				if loadBytes(cpu.vectorPart(3, i*c.size, c.size)) != 0 {
					t.Errorf("mask %d is left", i)
				}
			}
		})
	}
}
