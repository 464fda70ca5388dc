package ring0

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestLockstepTranslated runs random programs. VMM_TEST_LOCKSTEP_SEED has it run those of a seed.
func TestLockstepTranslated(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("VMM_TEST_LOCKSTEP_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d", seed)
	n := 1200
	if testing.Short() {
		n = 300
	}
	for name, mode := range map[string]lockMode{"kernel": {}, "user": {user: true}, "smap": {smap: true}} {
		t.Run(name, func(t *testing.T) {
			pair := newLockPair(t)
			halted, resets := map[uint8]int{}, 0
			fails := 0
			for i := range n {
				p := &program{r: rand.New(rand.NewPCG(seed, uint64(i))), mode: mode}
				code, at := p.make()
				regs := p.registersFor(at)
				if err := pair.check(code, lockCode, mode, regs, byte(i)); err != nil {
					t.Errorf("program %d of seed %d: %v", i, seed, err)
					if fails++; fails > 3 {
						break
					}
					continue
				}
				halted[pair.quick.First.Vector]++
				resets = pair.quick.translator.resets
			}
			t.Logf("%d of %d programs compared, %d instructions, exceptions %v, %d resets", pair.compared, n, pair.steps, halted, resets)
		})
	}
}
