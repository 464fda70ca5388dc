package ring0

import (
	"math/rand/v2"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// TestLockstepStrings runs MOVS and STOS with all sizes and prefixes, over the ends of pages, with
// sources and destinations that overlap, that may not be accessed, and that are in the program's page.
func TestLockstepStrings(t *testing.T) {
	seed, n := lockSeed(t), 3000
	if testing.Short() {
		n = 500
	}
	r := rand.New(rand.NewPCG(seed, 0))
	pairs, fails := lockPairs(t), 0
	exceptions := map[uint8]int{}
	for _, p := range pairs {
		p.setUp = func(mem lockRAM) { // lockData's next page is another address of it
			le.PutUint64(mem[4][(lockData>>12+1)*8:], lockData|x86.PTEPresent|x86.PTEWritable|x86.PTEUser)
			for i := uint64(lockCode); i < lockCodeEnd; i += pageSize {
				le.PutUint64(mem[4][i>>12*8:], le.Uint64(mem[4][i>>12*8:])|x86.PTEWritable)
			}
		}
	}
	for i := 0; i < n && fails < 8; i++ {
		mode := lockModes[i%len(lockModes)]
		var code []byte
		if mode.smap && r.IntN(4) > 0 {
			code = append(code, 0x0f, 0x01, 0xcb) // stac
		}
		if r.IntN(6) == 0 {
			code = append(code, 0xfd) // std
		}
		for range 1 + r.IntN(3) {
			code = append(code, 0xf9) // stc, for the flags are kept
			code = append(code, [][]byte{nil, {0xf3}, {0xf3}, {0xf2}}[r.IntN(4)]...)
			code = append(code, [][]byte{nil, nil, {0x66}, {0x48}, {0x48}, {0x64, 0x48}}[r.IntN(6)]...)
			code = append(code, []byte{0xa4, 0xa5, 0xaa, 0xab}[r.IntN(4)])
			code = append(code, 0x0f, 0x92, 0xc2) // setc dl
			if r.IntN(4) == 0 {
				code = append(code, 0xfc) // cld
			}
			if r.IntN(3) > 0 {
				code = append(code, 0xb9, byte(r.Uint32()), byte(r.UintN(3)), 0, 0) // mov ecx, ...
			}
		}
		address := func() uint64 {
			page := []uint64{lockData, lockData + 0x1000, lockData + 0x2000, lockReadOnly, lockMissing, lockKernel, lockDevice, lockCode + 0x1000, lockCode}[min(r.IntN(18), r.IntN(18))/2]
			offset := uint64(r.IntN(pageSize))
			if r.IntN(2) == 0 {
				offset = pageSize - uint64(r.IntN(40))
			}
			return page + offset
		}
		regs := kvm.Regs{RAX: r.Uint64(), RCX: []uint64{0, 1, uint64(r.IntN(64)), uint64(r.IntN(1200))}[r.IntN(4)], RBX: lockData, RSP: lockData + 0x2800,
			RSI: address(), RDI: address(), RIP: lockCode, RFLAGS: flagOne}
		if r.IntN(3) == 0 { // they overlap
			regs.RDI = regs.RSI + uint64(r.IntN(64)) - 32
		}
		pair := pairs[i%len(pairs)]
		if err := pair.check(append(code, hltCode...), lockCode, mode, regs, byte(i)); err != nil {
			t.Errorf("program %d of seed %d, % x with %x: %v", i, seed, code, regs, err)
			fails++
		}
		exceptions[pair.quick.First.Vector]++
	}
	compared := 0
	for _, p := range pairs {
		compared += p.compared
	}
	t.Logf("%d of %d programs compared, exceptions %v", compared, n, exceptions)
	if fails == 0 && compared < n*3/4 {
		t.Error("programs are not compared")
	}
}
