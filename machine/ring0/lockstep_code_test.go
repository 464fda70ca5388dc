package ring0

import (
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// Addresses of code that programs map as they like, and pages of memory for it.
const (
	codeA, codeB, codeC = 0x2a000, 0x2b000, 0x2c000
	mapA, mapB, mapC    = 0x40000, 0x41000, 0x140000 // mapC has mapA's place in the TLB of code
	mapLarge            = 0x200000
	otherTables         = 0xb000 // another PML4, PDPT, PD, PT
	entryOf             = lockTables + 0x3000
)

// asm puts pieces of machine code behind each other.
func asm(pieces ...[]byte) (code []byte) {
	for _, p := range pieces {
		code = append(code, p...)
	}
	return code
}

func withImm32(v uint32, op ...byte) []byte { return le.AppendUint32(op, v) }

// Pieces of programs.
var (
	callRBX  = []byte{0xff, 0xd3}
	addR8RAX = []byte{0x4d, 0x6b, 0xc0, 0x0a, 0x49, 0x01, 0xc0} // imul r8, r8, 10; add r8, rax
	hltCode  = []byte{0xf4}
)

func movRBX(v uint32) []byte { return withImm32(v, 0xbb) }

// set is an 8-byte store of a number; invlpg invalidates a page.
func set(at, v uint32) []byte {
	return le.AppendUint32(withImm32(at, 0x48, 0xc7, 0x04, 0x25), v)
}
func invlpg(at uint32) []byte { return withImm32(at, 0x0f, 0x01, 0x3c, 0x25) }
func movCR3(v uint32) []byte  { return append(withImm32(v, 0xb8), 0x0f, 0x22, 0xd8) }
func movCR4(v uint32) []byte  { return append(withImm32(v, 0xb8), 0x0f, 0x22, 0xe0) }

// returns is a function that returns a number.
func returns(v uint32) []byte { return append(withImm32(v, 0xb8), 0xc3) }

// times repeats a piece by a loop over R15.
func times(n byte, code []byte) []byte {
	code = append([]byte{}, code...)
	code = append(code, 0x41, 0xff, 0xcf, 0x0f, 0x85) // dec r15d; jnz
	return append(withImm32(uint32(n), 0x41, 0xbf), withImm32(uint32(-len(code)-4), code...)...)
}

// TestLockstepCode runs programs that change code and what it is mapped to.
func TestLockstepCode(t *testing.T) {
	const rights = x86.PTEPresent | x86.PTEWritable
	entry := func(linear uint32) uint32 { return entryOf + linear>>12*8 }
	for _, c := range []struct {
		name string
		code []byte
		want uint64 // R8
		// What is at codeA, codeB and codeC.
		a, b, c []byte
	}{
		{name: "a loop that changes its own number", want: 1234567,
			// mov eax, 1; imul r8, r8, 10; add r8, rax; inc byte [mapA+1]; ret; as often as it is called
			code: asm(movRBX(mapA), times(7, callRBX), hltCode),
			a:    asm(withImm32(1, 0xb8), addR8RAX, withImm32(mapA+1, 0xfe, 0x04, 0x25), []byte{0xc3})},
		{name: "a loop within a page that changes its own number", want: 1234567,
			code: asm(movRBX(mapA), callRBX, hltCode),
			a:    asm(times(7, asm(withImm32(1, 0xb8), addR8RAX, withImm32(mapA+7, 0xfe, 0x04, 0x25))), []byte{0xc3})},
		{name: "a loop within a page that changes it by another address", want: 1234567,
			code: asm(set(entry(mapB), codeA|rights), invlpg(mapB), movRBX(mapA), callRBX, hltCode),
			a:    asm(times(7, asm(withImm32(1, 0xb8), addR8RAX, withImm32(mapB+7, 0xfe, 0x04, 0x25))), []byte{0xc3})},
		{name: "a loop within a page that pushes over its number", want: 1222,
			// mov rdx, [its number]; inc dl; mov rcx, rsp; then, in turns, ...; mov esp, behind the number; push rdx; mov rsp, rcx
			code: asm(movRBX(mapA), callRBX, hltCode),
			a: asm(withImm32(mapA+23, 0x48, 0x8b, 0x14, 0x25), []byte{0xfe, 0xc2, 0x48, 0x89, 0xe1},
				times(4, asm([]byte{0x90, 0x90, 0x90}, withImm32(1, 0xb8), addR8RAX, withImm32(mapA+31, 0xbc), []byte{0x52, 0x48, 0x89, 0xcc})), []byte{0xc3})},
		{name: "a loop within a page that stores a vector over its number", want: 1222,
			// mov rdx, [its number]; inc dl; movq xmm0, rdx; then, in turns, ...; movq [its number], xmm0
			code: asm(movRBX(mapA), callRBX, hltCode),
			a: asm(withImm32(mapA+23, 0x48, 0x8b, 0x14, 0x25), []byte{0xfe, 0xc2, 0x66, 0x48, 0x0f, 0x6e, 0xc2},
				times(4, asm([]byte{0x90}, withImm32(1, 0xb8), addR8RAX, withImm32(mapA+23, 0x66, 0x0f, 0xd6, 0x04, 0x25))), []byte{0xc3})},
		{name: "a block that changes the one behind it", want: 1234,
			// inc byte [mapA+0x10]; jmp +7
			code: asm(movRBX(mapA), times(4, asm(callRBX, addR8RAX)), hltCode),
			a:    asm(withImm32(mapA+0x10, 0xfe, 0x04, 0x25), []byte{0xeb, 6, 0, 0, 0, 0, 0, 0}, returns(0))},
		{name: "code at two addresses", want: mapA + 0x15 + mapB + 0x15,
			code: asm(times(3, asm([]byte{0x45, 0x31, 0xc0}, movRBX(mapA), callRBX, []byte{0x49, 0x01, 0xc0}, movRBX(mapB), callRBX, []byte{0x49, 0x01, 0xc0})), set(entry(mapB), codeA|rights), invlpg(mapB),
				times(3, asm([]byte{0x45, 0x31, 0xc0}, movRBX(mapA), callRBX, []byte{0x49, 0x01, 0xc0}, movRBX(mapB), callRBX, []byte{0x49, 0x01, 0xc0})), hltCode),
			// jmp +9; ...; call +0; pop rax; ret
			a: append([]byte{0xeb, 14, 15: 0}, 0xe8, 0, 0, 0, 0, 0x58, 0xc3), b: returns(1)},
		{name: "another page at an address", want: 111222,
			code: asm(movRBX(mapA), times(3, asm(callRBX, addR8RAX)), set(entry(mapA), codeB|rights), invlpg(mapA), times(3, asm(callRBX, addR8RAX)), hltCode),
			a:    returns(1), b: returns(2)},
		{name: "other tables", want: 1212121,
			code: asm(movRBX(mapA), times(3, asm(callRBX, addR8RAX, movCR3(otherTables), callRBX, addR8RAX, movCR3(lockTables))), callRBX, addR8RAX, hltCode),
			a:    returns(1), b: returns(2)},
		{name: "other tables behind a page that is global", want: 1212121,
			// At the end of A is JMP, of whose displacement the last three bytes are another page's: it leads to A+3 or A+0x103.
			code: asm(set(entry(lockCode), lockCode|x86.PTEPresent|x86.PTEGlobal), set(entry(mapA), codeA|rights|x86.PTEGlobal),
				set(otherTables+0x3000+mapA>>12*8, codeA|rights), set(otherTables+0x3000+mapB>>12*8, codeC|rights), movCR4(x86.CR4PAE|x86.CR4PGE), movRBX(mapA+0xffe), times(3, asm(callRBX, addR8RAX, movCR3(otherTables), callRBX, addR8RAX, movCR3(lockTables))), callRBX, addR8RAX, hltCode),
			a: asm(make([]byte, 3), returns(1), make([]byte, 0x103-9), returns(2), make([]byte, 0xffe-0x109), []byte{0xe9, 0}),
			b: []byte{0xf0, 0xff, 0xff}, c: []byte{0xf1, 0xff, 0xff}},
		{name: "another page behind a jump that goes on there", want: 112,
			// As above, and nothing else leads to that page.
			code: asm(movRBX(mapA+0xffe), callRBX, addR8RAX, callRBX, addR8RAX, set(entry(mapB), codeC|rights), invlpg(mapB), callRBX, addR8RAX, hltCode),
			a:    asm(make([]byte, 3), returns(1), make([]byte, 0x103-9), returns(2), make([]byte, 0xffe-0x109), []byte{0xe9, 0}),
			b:    []byte{0xf0, 0xff, 0xff}, c: []byte{0xf1, 0xff, 0xff}},
		{name: "another page at an address whose jumps are new again", want: 113,
			// The jumps are forgotten by B, of which the TLB of code keeps A.
			code: asm(movRBX(mapB), callRBX, movRBX(mapA), callRBX, addR8RAX, invlpg(mapB), callRBX, addR8RAX, set(entry(mapA), codeC|rights), invlpg(mapA), callRBX, addR8RAX, hltCode),
			a:    returns(1), b: returns(2), c: returns(3)},
		{name: "other tables where all else is global and jumps are new again", want: 112,
			code: asm(set(entry(lockCode), lockCode|x86.PTEPresent|x86.PTEGlobal), set(entry(mapB), codeB|rights|x86.PTEGlobal), movCR4(x86.CR4PAE|x86.CR4PGE), movRBX(mapB), callRBX,
				movRBX(mapA), callRBX, addR8RAX, invlpg(mapB), callRBX, addR8RAX, movCR3(otherTables), callRBX, addR8RAX, hltCode),
			a: returns(1), b: returns(2)},
		{name: "translations that are made anew", want: 1212,
			// At A+0x100 there is more than at A, in whose translation's place is another one's.
			code: asm(times(2, asm(movRBX(mapA), callRBX, addR8RAX, movRBX(mapA+0x100), callRBX, addR8RAX, movCR4(x86.CR4PAE|x86.CR4SMAP), movCR4(x86.CR4PAE))), hltCode),
			a:    asm(returns(1), make([]byte, 0x100-6), []byte{0x90, 0x90}, returns(2))},
		{name: "an address of a large page", want: 11,
			code: asm(movRBX(mapLarge|codeA), times(2, asm(callRBX, addR8RAX)), set(lockTables+0x2000+8, 0), invlpg(mapLarge+0x5000), callRBX, addR8RAX, hltCode),
			a:    returns(1)},
		{name: "a link while another page is at the address", want: 1,
			// A and B: test ecx, ecx; jnz 0x100; ret
			code: asm(movRBX(mapA), callRBX, callRBX, set(entry(mapA), codeB|rights), movRBX(mapC), callRBX, []byte{0xff, 0xc1}, movRBX(mapA), callRBX,
				set(entry(mapB), codeA|rights), invlpg(mapA), invlpg(mapB), movRBX(mapB), callRBX, []byte{0x49, 0x89, 0xc0}, hltCode),
			a: append([]byte{0x85, 0xc9, 0x0f, 0x85, 0xf8, 0, 0, 0, 0xc3, 0xff: 0}, returns(1)...),
			b: append([]byte{0x85, 0xc9, 0x0f, 0x85, 0xf8, 0, 0, 0, 0xc3, 0xff: 0}, returns(2)...), c: []byte{0xc3}},
		{name: "a store to the last page while the first one of memory is guarded",
			// mov byte [-1], 1, where nothing is mapped
			code: asm(set(0x100, 0xc3), movRBX(0x100), times(7, callRBX), withImm32(^uint32(0), 0xc6, 0x04, 0x25), []byte{1}, hltCode)},
		{name: "a call to no address, of the place where the return address belongs",
			// mov rax, ...; mov [rsp-8], rax; call [rsp-8]; mov r8d, 1
			code: asm([]byte{0x48, 0xb8, 7: 0x40, 9: 0x40}, []byte{0x48, 0x89, 0x44, 0x24, 0xf8, 0xff, 0x54, 0x24, 0xf8}, withImm32(1, 0x41, 0xb8), hltCode)},
		{name: "a page that could only be read", want: 5,
			// mov rax, [rbx]; set; invlpg; mov byte [rbx], 5; mov r8, [rbx]
			code: asm(movRBX(lockReadOnly), []byte{0x48, 0x8b, 0x03}, set(entry(lockReadOnly), lockReadOnly|rights), []byte{0x48, 0xc7, 0x03, 5, 0, 0, 0, 0x4c, 0x8b, 0x03}, hltCode)},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair := newLockPair(t)
			pair.setUp = func(mem lockRAM) {
				copy(mem[codeA>>12][:], c.a)
				copy(mem[codeB>>12][:], c.b)
				copy(mem[codeC>>12][:], c.c)
				for linear, gpa := range map[uint64]uint64{mapA: codeA, mapB: codeB, mapC: codeC} {
					le.PutUint64(mem[4][linear>>12*8:], gpa|rights)
				}
				le.PutUint64(mem[3][8:], x86.PTELarge|rights)
				for i := range 4 { // the same, with another page at mapA
					mem[otherTables>>12+i] = mem[1+i]
					if i < 3 {
						le.PutUint64(mem[otherTables>>12+i][:], uint64(otherTables+0x1000*(i+1))|rights)
					}
				}
				le.PutUint64(mem[otherTables>>12+3][mapA>>12*8:], codeB|rights)
			}
			regs := kvm.Regs{RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}
			for fill := range 4 { // by which pages are guarded sooner or later
				if err := pair.check(c.code, lockCode, lockMode{}, regs, byte(fill)); err != nil || pair.compared != fill+1 {
					t.Errorf("compared %d: %v", pair.compared, err)
				}
				if got := pair.quick.r[r8]; got != c.want {
					t.Errorf("R8 is %d, want %d, exception %+v", got, c.want, pair.quick.First)
				}
			}
		})
	}
}
