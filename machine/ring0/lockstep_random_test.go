package ring0

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"vmm/internal/x86"
)

// lockSeed is the seed of random programs: that in VMM_TEST_LOCKSTEP_SEED, or a new one.
func lockSeed(t *testing.T) uint64 {
	seed, err := strconv.ParseUint(os.Getenv("VMM_TEST_LOCKSTEP_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	return seed
}

// lockModes are what programs run as.
var lockModes = []lockMode{{}, {user: true}, {smap: true}}

// lockPairs returns a pair for each mode.
func lockPairs(t testing.TB) (pairs []*lockPair) {
	for range lockModes {
		pairs = append(pairs, newLockPair(t))
	}
	return pairs
}

// TestLockstepTranslated runs random programs.
func TestLockstepTranslated(t *testing.T) {
	seed, n := lockSeed(t), 800
	if testing.Short() {
		n = 200
	}
	for _, mode := range lockModes {
		t.Run(fmt.Sprintf("%+v", mode), func(t *testing.T) {
			pair, fails := newLockPair(t), 0
			exceptions := map[uint8]int{}
			for i := 0; i < n && fails < 4; i++ {
				p := &program{r: rand.New(rand.NewPCG(seed, uint64(i))), mode: mode}
				code, at := p.make()
				if err := pair.check(code, lockCode, mode, p.registersFor(at), byte(i)); err != nil {
					t.Errorf("program %d of seed %d: %v", i, seed, err)
					fails++
				}
				exceptions[pair.quick.First.Vector]++
			}
			t.Logf("%d of %d programs compared, %d instructions, exceptions %v", pair.compared, n, pair.steps, exceptions)
			if fails == 0 && (pair.compared < n/2 || pair.steps < 8*n) {
				t.Error("programs are not compared, or end soon")
			}
		})
	}
}

// TestLockstepOdd runs instructions with prefixes that do not belong there, and with wrong bits.
func TestLockstepOdd(t *testing.T) {
	seed, n := lockSeed(t), 3000
	if testing.Short() {
		n = 500
	}
	pairs, fails := lockPairs(t), 0
	for i := 0; i < n && fails < 8; i++ {
		mode := lockModes[i%len(lockModes)]
		p := &program{r: rand.New(rand.NewPCG(seed, uint64(i))), mode: mode}
		p.make()
		p.at = p.part[0]
		for range 3 {
			p.raw(p.odd())
			p.raw([]byte{0x3c, 1}) // cmp al, 1
		}
		p.raw([]byte{0x9c, 0xf4}) // pushf; hlt
		if err := pairs[i%len(lockModes)].check(p.code[:], lockCode, mode, p.registersFor(p.part[0]), byte(i)); err != nil {
			t.Errorf("program %d of seed %d: %v", i, seed, err)
			fails++
		}
	}
}

// odd returns an instruction with something wrong.
func (p *program) odd() []byte {
	code := append([]byte{}, p.instruction()...)
	prefixes := []byte{0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x2e, 0x3e, 0x64, 0x48, 0x41, 0x40, 0x4f, 0x66}
	for range p.r.IntN(4) {
		at := 0
		for at < len(code)-1 && (code[at] == 0x66 || code[at]&0xf0 == 0x40 || code[at] >= 0xf2) && p.r.IntN(2) == 0 {
			at++
		}
		code = append(code[:at:at], append([]byte{prefixes[p.r.IntN(len(prefixes))]}, code[at:]...)...)
	}
	if p.r.IntN(3) == 0 {
		code[p.r.IntN(min(len(code), 4))] ^= 1 << p.r.IntN(8)
	}
	if p.r.IntN(12) == 0 { // up to the longest, and beyond
		for n := 16 - p.r.IntN(4); len(code) < n; {
			code = append([]byte{prefixes[p.r.IntN(3)]}, code...)
		}
	}
	var in inst
	if decodeComplete(code, &in, mode64) && in.form != (vectorForm{}) && in.mem && in.len > 11 {
		return p.odd() // the interpreter's rewritten one may be too long
	}
	return code
}

// FuzzTranslated runs any code, with a few bytes that choose the mode and the registers.
func FuzzTranslated(f *testing.F) {
	f.Add([]byte{0xf9, 0x48, 0x8b, 0x13, 0xff, 0xc0, 0x75, 0x03, 0x01, 0xd1, 0xf4, 0x9c}, uint64(0))
	f.Add([]byte{0x66, 0xf3, 0x48, 0x0f, 0xbc, 0x03, 0x48, 0xc5, 0xf8, 0x77}, uint64(1))
	f.Add([]byte{0x0f, 0x01, 0xcb, 0xf0, 0x0f, 0xc7, 0x0b, 0xeb, 0xfe}, uint64(2))
	f.Add([]byte{0xc4, 0xe3, 0x73, 0xf0, 0xc3, 0x05, 0xff, 0xe0, 0xe8, 0, 0, 0, 0, 0xc3}, uint64(4))
	pairs := lockPairs(f)
	for _, p := range pairs {
		p.setUp = func(mem lockRAM) { // code that changes itself differs within a block
			for i := range uint64(lockCode >> 12) {
				without := uint64(x86.PTENX)
				if i == 0 || i == lockHandlers>>12 || i == lockSyscall>>12 {
					without = x86.PTEWritable
				}
				le.PutUint64(mem[4][8*i:], le.Uint64(mem[4][8*i:])^without)
			}
			for i := uint64(lockCodeEnd); i < lockData; i += pageSize {
				le.PutUint64(mem[4][i>>12*8:], le.Uint64(mem[4][i>>12*8:])|x86.PTENX)
			}
		}
	}
	f.Fuzz(func(t *testing.T, code []byte, choice uint64) {
		mode := lockModes[choice%3]
		r := rand.New(rand.NewPCG(choice, 0))
		p := &program{r: r, mode: mode}
		p.pointers, p.small = []uint8{rBX, rSI, rDI, r13}, []uint8{rCX, r12}
		at := lockCode + uint64(r.IntN(pageSize))
		code = append(append([]byte{}, code[:min(len(code), 200)]...), 0xf4)
		if err := pairs[choice%3].check(code, at, mode, p.registersFor(at), byte(choice)); err != nil {
			t.Error(err)
		}
	})
}
