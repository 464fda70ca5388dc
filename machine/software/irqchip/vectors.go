package irqchip

import "math/bits"

// vectors is a set of interrupts: an IRR, an ISR or a TMR.
type vectors [4]uint64

func (s *vectors) has(v uint8) bool { return s[v/64]>>(v%64)&1 != 0 }
func (s *vectors) add(v uint8)      { s[v/64] |= 1 << (v % 64) }
func (s *vectors) remove(v uint8)   { s[v/64] &^= 1 << (v % 64) }

// highest returns the greatest of the set, 0 if it is empty: no interrupt has vector 0.
func (s *vectors) highest() uint8 {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] != 0 {
			return uint8(i*64 + bits.Len64(s[i]) - 1)
		}
	}
	return 0
}

// word returns 32 of the set, as the register at offset off has them.
func (s *vectors) word(off uint32) uint32 {
	n := off / 16
	return uint32(s[n/2] >> (n % 2 * 32))
}

func (s *vectors) setWord(off, v uint32) {
	n := off / 16
	shift := n % 2 * 32
	s[n/2] = s[n/2]&^(0xffff_ffff<<shift) | uint64(v)<<shift
}
