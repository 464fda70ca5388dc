package ring0

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"vmm/kvm"
)

// TestLockstepX87 executes every x87 instruction that is translated, in random order, with
// operands of random and of usual bits, with exceptions masked and not.
func TestLockstepX87(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 87))
	var all [][]byte
	for op := range byte(8) {
		for reg, o := range x87Operands[op] {
			if o.size > 0 {
				all = append(all, []byte{opX87 + op, 0x43 | byte(reg)<<3, 0}) // [rbx+...]
			}
		}
		for modrm := 0xc0; modrm < 0x100; modrm++ {
			all = append(all, []byte{opX87 + op, byte(modrm)})
		}
	}
	all = append(all, []byte{opFWAIT})
	pair := newLockPair(t)
	compared := 0
	for i := range 300 {
		var code []byte
		if i%4 != 0 {
			code = append(code, 0xdb, 0xe3) // fninit
		}
		for range 60 {
			in := append([]byte{}, all[r.IntN(len(all))]...)
			if len(in) == 3 {
				in[2] = byte(r.IntN(12)) * 8
			}
			code = append(code, in...)
			if r.IntN(8) == 0 {
				code = append(code, 0x0f, 0x92+byte(r.IntN(2))*8, 0xc1) // setb cl, setp cl: what FCOMI has left
			}
		}
		code = append(code, 0x9c, 0xdd, 0x73, 0x40, 0xf4) // pushf; fnsave [rbx+0x40]; hlt
		regs := kvm.Regs{RBX: lockData + 0x800, RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2 | uint64(r.IntN(256))&arithFlags}
		var operands [0x68]byte
		for at := 0; at < len(operands); at += 8 {
			switch r.IntN(3) {
			case 0:
				le.PutUint64(operands[at:], r.Uint64())
			case 1:
				le.PutUint64(operands[at:], 0x3ff0000000000000+r.Uint64N(1<<54)) // a number near to 1
			}
		}
		le.PutUint16(operands[0x10:], 0x37f&^uint16(r.IntN(64))) // a control word
		pair.setUp = func(mem lockRAM) { copy(mem[lockData>>12][0x800:], operands[:]) }
		if err := pair.check(code, lockCode, lockMode{}, regs, byte(i)); err != nil {
			t.Fatal(fmt.Errorf("program %d: %w: %x", i, err, code))
		}
		compared = pair.compared
	}
	if compared < 200 {
		t.Errorf("only %d programs were compared", compared)
	}
}
