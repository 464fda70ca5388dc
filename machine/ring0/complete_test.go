package ring0

import (
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// testBoard is what a complete CPU needs in a test: ports and devices that are the
// owner's, and MSRs that keep what they are given.
type testBoard struct {
	fuzzHost
	msrs    map[uint32]uint64
	devices map[uint64]byte // devices of the board's own: what a byte reads as
	wanted  bool
}

func (b *testBoard) Port(uint16, []byte, bool) bool { return false }
func (b *testBoard) Device(gpa uint64, data []byte, write bool) bool {
	v, ok := b.devices[gpa]
	if ok && !write {
		data[0] = v
	}
	return ok
}
func (b *testBoard) CPUIDOf(leaf, sub uint32) [4]uint32 { return [4]uint32{leaf, sub, 3, 4} }
func (b *testBoard) ReadMSR(i uint32) (uint64, bool)    { v, ok := b.msrs[i]; return v, ok }
func (b *testBoard) WriteMSR(i uint32, v uint64) bool   { b.msrs[i] = v; return i != 0xbad }
func (b *testBoard) MSR(i uint32) (uint64, error)       { return b.msrs[i], nil }
func (b *testBoard) SetXCR0(uint64) bool                { return true }
func (b *testBoard) CR8() uint64                        { return 0 }
func (b *testBoard) SetCR8(uint64)                      {}
func (b *testBoard) InterruptWanted() bool              { return b.wanted }

// Where the test's machine has what: all pages are mapped to themselves, code and stack
// of user mode for user mode.
const (
	testGDT    = 0xb000
	testIDT    = 0xc000
	testTSS    = 0xd000
	userCode   = 0x9000
	userStack  = 0xa800
	kernelCode = 0x8000
	kernelSP   = 0xe800
	handlers   = 0xf000 // an INT's vector at 16 times it: HLT
)

// completeCPU returns a CPU in 64-bit kernel mode in front of code, with an IDT whose
// handlers are HLTs, so that RIP tells which was entered.
func completeCPU(t testing.TB, code ...byte) (*CPU, *testBoard) {
	t.Helper()
	mem := make(fuzzMemory, fuzzPages)
	const table = x86.PTEPresent | x86.PTEWritable | x86.PTEUser
	for i := range 3 {
		le.PutUint64(mem[1+i][:], uint64(0x2000+0x1000*i)|table)
	}
	for i := range uint64(fuzzPages) {
		bits := uint64(x86.PTEPresent | x86.PTEWritable)
		if a := i << 12; a == userCode || a == userStack&^pageMask {
			bits |= x86.PTEUser
		}
		le.PutUint64(mem[4][8*i:], i<<12|bits)
	}
	le.PutUint64(mem[4][8*fuzzPages:], 0xfe000000|x86.PTEPresent|x86.PTEWritable|x86.PTEUser) // a device
	b := &testBoard{msrs: map[uint32]uint64{x86.MSRStar: 0x001b_0008_0000_0000, x86.MSRLStar: kernelCode + 0x800, x86.MSRSFMask: flagIF}, devices: map[uint64]byte{}}
	le.PutUint32(b.area[xOffMXCSR:], defaultMXCSR)
	c, err := NewComplete(b, NewMemory(mem), [64]Component{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	gdt := func(i int, d uint64) { le.PutUint64(mem[testGDT>>12][8*i:], d) }
	gdt(1, 0x00af9b000000ffff) // 0x08: kernel code, 64-bit
	gdt(2, 0x00cf93000000ffff) // 0x10: kernel data
	gdt(3, 0x00cffb000000ffff) // 0x1b: user code, 32-bit
	gdt(4, 0x00cff3000000ffff) // 0x23: user data
	gdt(5, 0x00affb000000ffff) // 0x2b: user code, 64-bit
	gdt(6, 0x00cf9b000000ffff) // 0x30: kernel code, 32-bit
	for v := range uint64(256) {
		h := handlers + 16*v
		dpl := uint64(0)
		if v == vectorBP {
			dpl = 3
		}
		le.PutUint64(mem[testIDT>>12][16*v:], h&0xffff|8<<16|(0x8e|dpl<<5)<<40|h>>16<<48)
		mem[handlers>>12][16*v] = 0xf4
	}
	le.PutUint64(mem[testTSS>>12][tssRSP0:], kernelSP)
	le.PutUint16(mem[testTSS>>12][tssIOMap:], 0xffff)
	copy(mem[kernelCode>>12][:], code)
	copy(mem[userCode>>12][:], code)
	c.Reset(&kvm.Regs{RIP: kernelCode, RSP: kernelSP - 0x100, RFLAGS: 2},
		&kvm.Sregs{CR3: 0x1000, CR0: x86.CR0PG | x86.CR0WP | x86.CR0PE, CR4: x86.CR4PAE | x86.CR4SMAP | x86.CR4SMEP, EFER: x86.EFERLMA | x86.EFERLME | x86.EFERNXE | 1,
			CS: flatSegment(8, true, 0), SS: flatSegment(0x10, false, 0), GDT: kvm.DTable{Base: testGDT, Limit: 0xfff},
			IDT: kvm.DTable{Base: testIDT, Limit: 0xfff}, TR: kvm.Segment{Base: testTSS, Limit: 0x67}})
	return c, b
}

// inUser puts the CPU into user mode, 64-bit or 32-bit.
func inUser(c *CPU, narrow bool) {
	var r kvm.Regs
	var s kvm.Sregs
	c.Store(&r, &s)
	r.RIP, r.RSP = userCode, userStack
	s.CS, s.SS = flatSegment(0x2b, true, 3), flatSegment(0x23, false, 3)
	if narrow {
		s.CS = flatSegment(0x1b, true, 3)
		s.CS.L, s.CS.DB = 0, 1
	}
	c.Load(&r, &s)
}

// pushed is what an exception has pushed, from RIP up; with an error code behind the
// error.
func pushed(c *CPU) (f [5]uint64) {
	for i := range f {
		f[i], _ = c.load(c.r[rSP]+8*uint64(i), 8)
	}
	return f
}

// TestExceptions runs code into exceptions, in kernel and in user mode.
func TestExceptions(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   []byte
		user   bool
		narrow bool
		setup  func(c *CPU)
		vector uint8
		code2  int64 // the error code; -1: none
		rip    uint64
	}{
		{"div", []byte{0x48, 0xf7, 0xf1}, false, false, nil, vectorDE, -1, 0},
		{"div in user mode", []byte{0x90, 0x48, 0xf7, 0xf1}, true, false, nil, vectorDE, -1, 1},
		{"idiv overflow", []byte{0x48, 0xf7, 0xf9}, false, false, func(c *CPU) { c.r[rAX], c.r[rDX], c.r[rCX] = 1<<63, ^uint64(0), ^uint64(0) }, vectorDE, -1, 0},
		{"ud2", []byte{0x0f, 0x0b}, true, false, nil, vectorUD, -1, 0},
		{"not mapped", []byte{0x48, 0x8b, 0x04, 0x25, 0, 0, 0x10, 0}, false, false, nil, vectorPF, 0, 0},
		{"kernel memory from user mode", []byte{0x48, 0x89, 0x04, 0x25, 0, 0xb0, 0, 0}, true, false, nil, vectorPF, pfPresent | pfWrite | pfUser, 0},
		{"user memory from kernel mode", []byte{0x48, 0x8b, 0x04, 0x25, 0, 0xa0, 0, 0}, false, false, nil, vectorPF, pfPresent, 0},
		{"jump to user memory", []byte{0xe9, 0xfb, 0x0f, 0, 0}, false, false, nil, vectorPF, pfPresent | pfFetch, 0x1000},
		{"jump to what is not mapped", []byte{0xff, 0xe0}, true, false, func(c *CPU) { c.r[rAX] = 0x123456 }, vectorPF, pfUser | pfFetch, 0x123456 - userCode},
		{"no address", []byte{0x48, 0x8b, 0x00}, true, false, func(c *CPU) { c.r[rAX] = 1 << 60 }, vectorGP, 0, 0},
		{"jump to no address", []byte{0xff, 0xe0}, false, false, func(c *CPU) { c.r[rAX] = 1 << 60 }, vectorGP, 0, 0},
		{"hlt in user mode", []byte{0xf4}, true, false, nil, vectorGP, 0, 0},
		{"cli in user mode", []byte{0xfa}, true, false, nil, vectorGP, 0, 0},
		{"mov cr3 in user mode", []byte{0x0f, 0x22, 0xd8}, true, false, nil, vectorGP, 0, 0},
		{"in in user mode", []byte{0xec}, true, false, nil, vectorGP, 0, 0},
		{"wrmsr that is refused", []byte{0x0f, 0x30}, false, false, func(c *CPU) { c.r[rCX] = 0xbad }, vectorGP, 0, 0},
		{"int3", []byte{0xcc}, true, false, nil, vectorBP, -1, 1},
		{"int 0x80 that is not for user mode", []byte{0xcd, 0x80}, true, false, nil, vectorGP, 0x80<<3 | errIDT, 0},
		{"int 0x80", []byte{0xcd, 0x80}, false, false, nil, 0x80, -1, 2},
		{"into, 32-bit", []byte{0xce}, true, true, func(c *CPU) { c.of = 1 }, vectorGP, vectorOF<<3 | errIDT, 0},
		{"bound, 32-bit", []byte{0x62, 0x03}, true, true, func(c *CPU) { c.r[rAX], c.r[rBX] = 5, userStack }, 5, -1, 0},
		{"a selector beyond the table", []byte{0x8e, 0xd8}, false, false, func(c *CPU) { c.r[rAX] = 0x1000 }, vectorGP, 0x1000, 0},
		{"movaps, misaligned", []byte{0x0f, 0x28, 0x00}, true, false, func(c *CPU) { c.r[rAX] = userStack + 8 }, vectorGP, 0, 0},
		{"single step", []byte{0x90, 0x90}, true, false, func(c *CPU) { c.setFlags(c.flags() | flagTF) }, vectorDB, -1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			cpu, _ := completeCPU(t, c.code...)
			start := uint64(kernelCode)
			if c.user {
				inUser(cpu, c.narrow)
				start = userCode
			}
			if c.setup != nil {
				c.setup(cpu)
			}
			if stop := cpu.Run(10); stop != StopHalt || cpu.cpl != 0 || cpu.mode != mode64 {
				t.Fatalf("%v at %#x, level %d", stop, cpu.RIP(), cpu.cpl)
			}
			if v := (cpu.RIP() - 1 - handlers) / 16; v != uint64(c.vector) {
				t.Fatalf("exception %d", v)
			}
			f := pushed(cpu)
			if c.code2 >= 0 {
				if f[0] != uint64(c.code2) {
					t.Errorf("error code %#x, want %#x", f[0], c.code2)
				}
				cpu.r[rSP] += 8
				f = pushed(cpu)
			}
			if f[0] != start+c.rip {
				t.Errorf("RIP %#x, want %#x", f[0], start+c.rip)
			}
			if c.user && (f[1]&3 != 3 || f[3] != userStack || cpu.r[rSP] != kernelSP-40) {
				t.Errorf("pushed %#x, RSP %#x", f, cpu.r[rSP])
			}
		})
	}
}

// TestNoHandler wants a shutdown where a double fault cannot be delivered.
func TestNoHandler(t *testing.T) {
	cpu, _ := completeCPU(t, 0x0f, 0x0b)
	cpu.sregs.IDT.Limit = 0
	if stop := cpu.Run(10); stop != StopShutdown || cpu.First.Vector != vectorUD {
		t.Errorf("%v, %+v", stop, cpu.First)
	}
}

// TestSystemCall goes from user mode to the kernel and back, by SYSCALL and SYSRET and by
// IRET.
func TestSystemCall(t *testing.T) {
	cpu, _ := completeCPU(t, 0x0f, 0x05, 0xf4) // syscall; hlt
	mem := cpu.tables.mem.(fuzzMemory)
	copy(mem[kernelCode>>12][0x800:], []byte{0x48, 0x0f, 0x07}) // sysretq
	inUser(cpu, false)
	cpu.setFlags(flagIF | flagCF)
	if stop := cpu.Run(1); stop != StopBudget || cpu.RIP() != kernelCode+0x800 || cpu.cpl != 0 || cpu.r[rCX] != userCode+2 || cpu.InterruptsOn() {
		t.Fatalf("%v at %#x", stop, cpu.RIP())
	}
	if stop := cpu.Run(1); stop != StopBudget || cpu.RIP() != userCode+2 || cpu.cpl != 3 || cpu.flags() != flagIF|flagCF|flagOne {
		t.Fatalf("%v at %#x, flags %#x", stop, cpu.RIP(), cpu.flags())
	}
	// The HLT of user mode faults; its handler is made to return to 32-bit code.
	copy(mem[handlers>>12][16*vectorGP:], []byte{0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf}) // add rsp, 8; iretq
	if stop := cpu.Run(2); stop != StopBudget {
		t.Fatal(stop)
	}
	cpu.store(cpu.r[rSP], userCode+0x100, 8)
	cpu.store(cpu.r[rSP]+8, 0x1b, 8)
	if stop := cpu.Run(1); stop != StopBudget || cpu.RIP() != userCode+0x100 || cpu.mode != mode32 || cpu.cpl != 3 || cpu.r[rSP] != userStack {
		t.Errorf("%v at %#x, mode %d", stop, cpu.RIP(), cpu.mode)
	}
}

// TestAccesses reads and writes ports and devices, whose owner is asked.
func TestAccesses(t *testing.T) {
	// in al, dx; mov rcx, [device]; mov [device+8], ecx; out 0x80, al
	cpu, b := completeCPU(t, 0xec, 0x48, 0x8b, 0x0c, 0x25, 0, 0, 1, 0, 0x89, 0x0c, 0x25, 8, 0, 1, 0, 0xe6, 0x80, 0x8a, 0x1c, 0x25, 0x40, 0, 1, 0)
	cpu.r[rDX] = 0x3f8
	cpu.setFlags(flagAC) // the device's page is user mode's
	b.devices[0xfe000040] = 0x77
	want := []Exit{{Port: true, Addr: 0x3f8, Len: 1}, {Addr: 0xfe000000, Len: 8},
		{Addr: 0xfe000008, Len: 4, Write: true, Data: [8]byte{1, 2, 3, 4}}, {Port: true, Addr: 0x80, Len: 1, Write: true, Data: [8]byte{0x5a}}}
	for i, w := range want {
		if stop := cpu.Run(10); stop != StopExit || cpu.Exit.Port != w.Port || cpu.Exit.Addr != w.Addr || cpu.Exit.Len != w.Len || cpu.Exit.Write != w.Write {
			t.Fatalf("exit %d: %v, %+v", i, stop, cpu.Exit)
		}
		switch {
		case !w.Write && w.Port:
			cpu.Supply([]byte{0x5a})
		case !w.Write:
			cpu.Supply([]byte{1, 2, 3, 4, 5, 6, 7, 8})
		case cpu.Exit.Data[0] != w.Data[0]:
			t.Errorf("exit %d: %x was written", i, cpu.Exit.Data)
		}
	}
	if cpu.Run(1); cpu.r[rBX] != 0x77 {
		t.Errorf("the board's own device reads as %#x", cpu.r[rBX])
	}
}

// TestInterruptWindow takes an interrupt no sooner than behind the instruction behind STI.
func TestInterruptWindow(t *testing.T) {
	cpu, b := completeCPU(t, 0xfb, 0x90, 0x90)
	b.wanted = true
	if stop := cpu.Run(10); stop != StopAttention || cpu.RIP() != kernelCode+2 || !cpu.CanInterrupt() {
		t.Fatalf("%v at %#x", stop, cpu.RIP())
	}
	if !cpu.Interrupt(0x40) || cpu.RIP() != handlers+16*0x40 || cpu.InterruptsOn() {
		t.Errorf("at %#x", cpu.RIP())
	}
}

// TestInvalidateLarge wants all of a large page forgotten when one of its addresses is
// invalidated.
func TestInvalidateLarge(t *testing.T) {
	// mov rax, [rbx]; mov rcx, [rbx+4096]; invlpg [rbx]; mov rdx, [rbx+4096]
	cpu, _ := completeCPU(t, 0x48, 0x8b, 0x03, 0x48, 0x8b, 0x8b, 0, 0x10, 0, 0, 0x0f, 0x01, 0x3b, 0x48, 0x8b, 0x93, 0, 0x10, 0, 0)
	mem := cpu.tables.mem.(fuzzMemory)
	entry := mem[3][8:] // of the second 2 MiB
	le.PutUint64(entry, x86.PTEPresent|x86.PTEWritable|x86.PTELarge)
	cpu.r[rBX] = 2<<20 | 0xa000
	mem[0xa][0], mem[0xb][0] = 1, 2
	cpu.Run(2)
	le.PutUint64(entry, 0)
	if cpu.Run(1); cpu.r[rAX] != 1 || cpu.r[rCX] != le.Uint64(mem[0xb][:]) {
		t.Fatalf("RAX %#x, RCX %#x", cpu.r[rAX], cpu.r[rCX])
	}
	if cpu.Run(1); cpu.First.Vector != vectorPF || cpu.sregs.CR2 != 2<<20|0xb000 {
		t.Errorf("exception %+v", cpu.First)
	}
}

// TestStartUp goes the way of a second processor: from real mode by protected mode to
// 64-bit code.
func TestStartUp(t *testing.T) {
	cpu, _ := completeCPU(t)
	mem := cpu.tables.mem.(fuzzMemory)
	code := []byte{
		0xfa,                   // cli
		0x8c, 0xc8, 0x8e, 0xd8, // mov ax, cs; mov ds, ax
		0x66, 0x0f, 0x01, 0x16, 0x80, 0x00, // lgdtl [0x80]
		0xb8, 0x01, 0x00, 0x0f, 0x01, 0xf0, // mov ax, 1; lmsw ax
		0x66, 0xea, 0x20, 0x80, 0, 0, 0x30, 0x00, // ljmpl 0x30:0x8020
	}
	copy(mem[kernelCode>>12][:], code)
	copy(mem[kernelCode>>12][0x20:], []byte{
		0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0, // mov eax, CR4.PAE; mov cr4, eax
		0xb8, 0x00, 0x10, 0, 0, 0x0f, 0x22, 0xd8, // mov eax, 0x1000; mov cr3, eax
		0xb9, 0x80, 0, 0, 0xc0, 0xb8, 0x00, 0x09, 0, 0, 0x31, 0xd2, 0x0f, 0x30, // EFER = LME | NXE
		0xb8, 1, 0, 0, 0x80, 0x0f, 0x22, 0xc0, // mov eax, PG | PE; mov cr0, eax
		0xea, 0x80, 0x81, 0, 0, 0x08, 0x00, // ljmp 8:0x8180
	})
	le.PutUint16(mem[kernelCode>>12][0x80:], 0xfff)
	le.PutUint32(mem[kernelCode>>12][0x82:], testGDT)
	copy(mem[kernelCode>>12][0x180:], []byte{0x48, 0xff, 0xc0, 0xf4}) // inc rax; hlt
	data := kvm.Segment{Limit: 0xffff, Type: 3, Present: 1, S: 1}
	cs := data
	cs.Selector, cs.Base, cs.Type = kernelCode>>4, kernelCode, 11
	cpu.Reset(&kvm.Regs{RFLAGS: 2}, &kvm.Sregs{CS: cs, DS: data, ES: data, FS: data, GS: data, SS: data, CR0: 0x60000010})
	if stop := cpu.Run(100); stop != StopHalt || cpu.mode != mode64 || cpu.RIP() != kernelCode+0x184 || cpu.r[rAX] != 0x80000002 {
		t.Errorf("%v at %#x, mode %d, RAX %#x", stop, cpu.RIP(), cpu.mode, cpu.r[rAX])
	}
}

// TestNarrow runs 32-bit code that uses what 64-bit code does not have.
func TestNarrow(t *testing.T) {
	cpu, _ := completeCPU(t,
		0x40,                   // inc eax
		0x60, 0x31, 0xc0, 0x61, // pusha; xor eax, eax; popa
		0xe8, 0, 0, 0, 0, 0x5b, // call +0; pop ebx
		0x68, 0x16, 0x90, 0, 0, 0xc3, // push 0x9016; ret
		0x0f, 0x0b, 0x0f, 0x0b, 0x0f, // 17: not reached
		0x67, 0x8d, 0x40, 0x05, // 22: lea eax, [bx+si+5]
		0xb0, 0x15, 0x04, 0x27, 0x27, // mov al, 0x15; add al, 0x27; daa
		0xb9, 3, 0, 0, 0, 0xe2, 0xfe, // mov ecx, 3; loop to itself
		0x0f, 0x0b)
	inUser(cpu, true)
	cpu.r[rAX], cpu.r[rSI], cpu.r[rDI] = 0xffffffff, 0x10, 7
	if stop := cpu.Run(40); stop != StopHalt || (cpu.RIP()-1-handlers)/16 != vectorUD {
		t.Fatalf("%v at %#x", stop, cpu.RIP())
	}
	if f := pushed(cpu); f[0] != userCode+38 || f[3] != userStack {
		t.Errorf("pushed %#x", f)
	}
	if cpu.r[rBX] != userCode+10 || cpu.r[rCX] != 0 || cpu.r[rAX]&0xff != 0x42 || cpu.r[rDI] != 7 {
		t.Errorf("registers %#x", cpu.r[:8])
	}
}

// FuzzComplete runs any code in any mode and wants no panic.
func FuzzComplete(f *testing.F) {
	f.Add([]byte{0x0f, 0x05, 0xcf, 0xcd, 0x80}, uint8(0))
	f.Add([]byte{0x60, 0x61, 0x9a, 1, 2, 3, 4, 5, 6, 0xcf}, uint8(1))
	f.Add([]byte{0x0f, 0x22, 0xc0, 0x0f, 0x01, 0x16, 0xea}, uint8(2))
	f.Add([]byte{0x8e, 0xd0, 0x0f, 0xb2, 0x00, 0xca, 1, 0, 0xf3, 0x6c}, uint8(3))
	f.Fuzz(func(t *testing.T, code []byte, mode uint8) {
		c, _ := completeCPU(t, code[:min(len(code), 64)]...)
		switch mode % 4 {
		case 1:
			inUser(c, true)
		case 2:
			inUser(c, false)
		case 3:
			c.sregs.CR0 &^= x86.CR0PE | x86.CR0PG
			c.sregs.EFER = 0
			c.setMode()
		}
		for range 20 {
			switch c.Run(50) {
			case StopExit:
				if !c.Exit.Write {
					c.Supply([]byte{1})
				}
			case StopShutdown, StopUnknown:
				return
			case StopHalt:
				c.Interrupt(0x30)
			}
		}
	})
}
