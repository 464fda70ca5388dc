package ring0

import (
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// movToStack is a move of a byte to the stack, movByte to an address.
func movToStack(at, v byte) []byte     { return []byte{0xc6, 0x44, 0x24, at, v} }
func movByte(at uint32, v byte) []byte { return append(withImm32(at, 0xc6, 0x04, 0x25), v) }

// TestLockstepIRET has the kernel return to user mode by IRET, with one thing that is unusual in
// the third of five turns: translated code must leave it to the interpreter.
func TestLockstepIRET(t *testing.T) {
	const stack = lockKernel + 0x800
	for name, c := range map[string]struct {
		code []byte // in front of IRET, in the third turn
		end  uint64 // of the stack, if it is another one
	}{
		"nothing":                  {code: []byte{0x90}},
		"the stack in two pages":   {end: lockKernel + 0x1010, code: []byte{0x90}},
		"a stack that is missing":  {code: withImm32(lockMissing, 0xbc)},                     // mov esp, ...
		"NT":                       {code: []byte{0x9c, 0xc6, 0x44, 0x24, 0x01, 0x40, 0x9d}}, // pushf; mov byte [rsp+1], 0x40; popf
		"NT of user mode":          {code: movToStack(iretFlags+1, flagNT>>8)},
		"TF of user mode":          {code: movToStack(iretFlags+1, flagTF>>8)},
		"AC of user mode":          {code: movToStack(iretFlags+2, flagAC>>16)},
		"RF of user mode":          {code: movToStack(iretFlags+2, flagRF>>16)},
		"IF and IOPL of user mode": {code: movToStack(iretFlags+1, (flagIF|flagIOPL)>>8)},
		"flags of user mode":       {code: asm(movToStack(iretFlags, 0xd7), movToStack(iretFlags+1, 0x0c))},
		"no canonical address":     {code: movToStack(iretIP+6, 1)},
		"another selector of code": {code: movToStack(iretCS, 0x1b)},
		"the kernel's selector":    {code: movToStack(iretCS, 8)},
		"another selector of data": {code: movToStack(iretSS, 0x33)},
		"no selector of data":      {code: movToStack(iretSS, 0)},
		"a segment of the kernel":  {code: []byte{0xb8, 0x10, 0, 0, 0, 0x8e, 0xe0}}, // mov eax, 0x10; mov fs, eax
		"a segment of user mode":   {code: []byte{0xb8, 0x23, 0, 0, 0, 0x8e, 0xd8}}, // mov ds, eax
		"a segment that is null":   {code: []byte{0xb8, 3, 0, 0, 0, 0x8e, 0xc0}},    // mov es, eax
		"code that is not there":   {code: movByte(lockGDT+5*8+5, 0x7b)},
		"code of 32 bits":          {code: movByte(lockGDT+5*8+6, 0xcf)},
		"a stack of the kernel":    {code: movByte(lockGDT+4*8+5, 0x93)},
		// mov ecx, ...; mov edx, ...; wrmsr
		"other selectors of SYSRET": {code: asm(withImm32(x86.MSRStar, 0xb9), withImm32(0x00130008, 0xba), []byte{0x0f, 0x30})},
		// sub rsp, 16; sgdt [rsp]; mov word [rsp], 0x2e; lgdt [rsp]; add rsp, 16
		"a table that is short": {code: []byte{0x48, 0x83, 0xec, 0x10, 0x0f, 0x01, 0x04, 0x24, 0x66, 0xc7, 0x04, 0x24, 0x2e, 0, 0x0f, 0x01, 0x14, 0x24, 0x48, 0x83, 0xc4, 0x10}},
	} {
		t.Run(name, func(t *testing.T) {
			end := c.end
			if end == 0 {
				end = stack
			}
			// push 0x23; push r8; push r11; push 0x2b; push rcx, with RSP as it was in R8; then in the third turn, ...
			push := []byte{0x6a, 0x23, 0x41, 0x50, 0x41, 0x53, 0x6a, 0x2b, 0x51}
			handler := asm([]byte{0x49, 0x89, 0xe0}, withImm32(uint32(end), 0xbc), push, // mov r8, rsp; mov esp, ...
				[]byte{0x83, 0xfb, 3, 0x75, byte(len(c.code))}, c.code, []byte{0x48, 0xcf}) // cmp ebx, 3; jne behind it
			// mov ebx, 5; syscall; mov eax, cs; add r9, rax; dec ebx; jnz to syscall; hlt
			code := []byte{0xbb, 5, 0, 0, 0, 0x0f, 0x05, 0x8c, 0xc8, 0x49, 0x01, 0xc1, 0xff, 0xcb, 0x75, 0xf5, 0xf4}
			pair := newLockPair(t)
			pair.setUp = func(mem lockRAM) {
				copy(mem[lockSyscall>>12][:], handler)
				// Behind the kernel's stack is a page that is elsewhere in memory, where another stack is.
				le.PutUint64(mem[4][(lockKernel>>12+1)*8:], codeA|x86.PTEPresent|x86.PTEWritable)
				le.PutUint64(mem[lockKernel>>12+1][0:], lockData)
				le.PutUint64(mem[lockKernel>>12+1][8:], 0x23)
			}
			regs := kvm.Regs{RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: flagOne | flagCF}
			for fill := range 3 {
				err := pair.check(code, lockCode, lockMode{user: true, smap: true}, regs, byte(fill))
				if err != nil || pair.compared != fill+1 {
					t.Errorf("compared %d: %v", pair.compared, err)
				}
			}
			if name == "nothing" && (pair.quick.r[r9] != 5*0x2b || pair.quick.First.Vector != vectorGP || pair.quick.sregs.CR4&x86.CR4SMAP == 0) {
				t.Errorf("R9 is %#x, exception %+v", pair.quick.r[r9], pair.quick.First)
			}
		})
	}
}

// TestTranslatedIRET: the first IRET is translated, and where an interrupt waits or an NMI ends it is
// what the interpreter does; nor does it go to selectors that nobody knows.
func TestTranslatedIRET(t *testing.T) {
	// push 0x23; push r8; push r11; push 0x2b; push rcx; iretq
	returns := []byte{0x6a, 0x23, 0x41, 0x50, 0x41, 0x53, 0x6a, 0x2b, 0x51, 0x48, 0xcf}
	for name, c := range map[string]struct {
		kernel       bool
		code         []byte
		waiting, nmi bool
		stop         Stop
		rip          uint64
	}{
		"usual":               {code: []byte{0x0f, 0x05, 0xf4}, stop: StopHalt, rip: lockHandlers + 16*vectorGP + 1},
		"an interrupt waits":  {code: []byte{0x0f, 0x05, 0xf4}, waiting: true, stop: StopAttention, rip: lockCode + 2},
		"an NMI ends":         {code: []byte{0x0f, 0x05, 0xf4}, nmi: true, stop: StopHalt, rip: lockHandlers + 16*vectorGP + 1},
		"nobody knows how to": {kernel: true, code: []byte{0x6a, 0, 0x54, 0x6a, 2, 0x6a, 0, 0x6a, 0, 0x48, 0xcf}, stop: StopHalt, rip: lockHandlers + 16*vectorGP + 1},
	} {
		t.Run(name, func(t *testing.T) {
			cpu := lockCPU(t, true)
			layOut(cpu, c.code, lockCode, lockMode{user: !c.kernel, smap: true}, kvm.Regs{RSP: lockKernel + 0x400, RIP: lockCode, RFLAGS: flagOne | flagIF}, 1)
			copy(lockMemory(cpu)[lockSyscall>>12][:], asm(withImm32(lockKernel+0x800, 0xbc), returns))
			for _, s := range []*kvm.Segment{&cpu.sregs.DS, &cpu.sregs.ES, &cpu.sregs.FS, &cpu.sregs.GS} {
				s.Unusable = 1
			}
			cpu.InNMI = c.nmi
			cpu.SetWaiting(c.waiting)
			cpu.board.(*lockBoard).wanted = c.waiting
			if stop := cpu.Run(1000); stop != c.stop || cpu.r[rIP] != c.rip || cpu.InNMI {
				t.Errorf("%v at %#x, exception %+v, in an NMI: %v", stop, cpu.r[rIP], cpu.First, cpu.InNMI)
			}
		})
	}
}
