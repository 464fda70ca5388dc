package ring0

import (
	"math/rand/v2"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// TestLockstepRemapped runs programs that call functions of a few pages, write to those by other
// addresses, copy them, and map others in their places, in random order.
func TestLockstepRemapped(t *testing.T) {
	const rights = x86.PTEPresent | x86.PTEWritable
	seed, n := lockSeed(t), 500
	if testing.Short() {
		n = 100
	}
	r := rand.New(rand.NewPCG(seed, 0))
	pages, linears := []uint32{codeA, codeB, codeC}, []uint32{mapA, mapB, mapC}
	// A page begins with the end of a jump of the one in front of it, to that one's function at 0x10, at
	// 0x110, ..., and has functions at 0x40, which jumps, and at 0x80, which has a loop.
	functions := []uint32{0x10, 0x40, 0x80, 0xffe}
	page := func(v byte) []byte {
		b := make([]byte, pageSize)
		copy(b, []byte{0xf0 | v, 0xff, 0xff})
		for at := 0x10; at < 0x1000; at += 0x100 {
			copy(b[at:], returns(uint32(v)))
		}
		copy(b[0x40:], []byte{0x85, 0xc0, 0x74, 0x0c, 0xeb, 0xc8, 0x50: 0}) // test eax, eax; jz +12; jmp 0x10
		copy(b[0x50:], returns(uint32(v)+1))
		copy(b[0x80:], asm(times(3, withImm32(uint32(v), 0x05)), []byte{0xc3})) // add eax, v
		copy(b[0xffe:], []byte{0xe9, 0x0d})
		return b
	}
	entry := func(linear uint32) uint32 { return entryOf + linear>>12*8 }
	pick := func(of []uint32) uint32 { return of[r.IntN(len(of))] }
	step := func(smap bool) []byte {
		switch r.IntN(16) {
		case 0: // the number of a function
			return withImm32(pick(append(pages, linears...))+pick([]uint32{0x11, 0x51, 0}), 0xfe, 0x04, 0x25)
		case 1, 2: // rep movsb
			from, to := pick(append(pages, linears...)), pick(append(pages, linears...))
			return asm(withImm32(from, 0xbe), withImm32(to, 0xbf), withImm32(uint32(r.IntN(0xc0)), 0xb9), []byte{0xf3, 0xa4})
		case 3, 4:
			at := pick(linears)
			return asm(set(entry(at), pick(pages)|rights), invlpg(at))
		case 5:
			return movCR3(pick([]uint32{lockTables, otherTables}))
		case 6:
			return invlpg(pick(append(pages, linears...)))
		case 7:
			if smap {
				return []byte{0x0f, 0x01, byte(0xca + r.IntN(2))} // clac, stac
			}
			return movCR4(x86.CR4PAE | pick([]uint32{0, x86.CR4SMAP, x86.CR4PGE}))
		}
		return asm(movRBX(pick(linears)+pick(functions)), []byte{0x41, 0x57}, times(byte(1+r.IntN(3)), asm([]byte{0x41, 0x57}, callRBX, addR8RAX, []byte{0x41, 0x5f})), []byte{0x41, 0x5f})
	}
	fails, compared := 0, 0
	for _, mode := range []lockMode{{}, {smap: true}} {
		pair := newLockPair(t)
		pair.setUp = func(mem lockRAM) {
			for i, gpa := range pages {
				copy(mem[gpa>>12][:], page(byte(1+3*i)))
				le.PutUint64(mem[4][linears[i]>>12*8:], uint64(gpa)|rights)
			}
			le.PutUint64(mem[4][(mapC>>12+1)*8:], uint64(codeA)|rights)
			for i := range 4 {
				mem[otherTables>>12+i] = mem[1+i]
				if i < 3 {
					le.PutUint64(mem[otherTables>>12+i][:], uint64(otherTables+0x1000*(i+1))|rights)
				}
			}
			le.PutUint64(mem[otherTables>>12+3][mapA>>12*8:], codeB|rights)
			le.PutUint64(mem[otherTables>>12+3][mapB>>12*8:], codeC|rights)
		}
		for i := 0; i < n && fails < 4; i++ {
			var code []byte
			for range 4 + r.IntN(12) {
				code = append(code, step(mode.smap)...)
			}
			regs := kvm.Regs{RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}
			if err := pair.check(append(code, hltCode...), lockCode, mode, regs, byte(r.Uint32())); err != nil {
				t.Errorf("program %d of seed %d: %v", i, seed, err)
				fails++
			}
		}
		compared += pair.compared
	}
	t.Logf("%d of %d programs compared", compared, 2*n)
	if fails == 0 && compared < n {
		t.Error("programs are not compared")
	}
}
