package ring0

import (
	"hash/crc32"
	"math/bits"
)

// The shift operations as opcodes number them; 6 is another SHL.
const (
	shiftROL = iota
	shiftROR
	shiftRCL
	shiftRCR
	shiftSHL
	shiftSHR
	shiftSAL
	shiftSAR
)

func execShiftImm(c *CPU, in *inst) status { return c.modify(in, shiftImm) }
func execShiftCL(c *CPU, in *inst) status  { return c.modify(in, shiftCL) }

func shiftImm(c *CPU, in *inst, old uint64) uint64 { return c.shift(in, old, in.imm) }
func shiftCL(c *CPU, in *inst, old uint64) uint64  { return c.shift(in, old, c.r[rCX]) }

// countMask is what the CPU takes of a shift count.
func countMask(size uint8) uint64 {
	if size == 8 {
		return 63
	}
	return 31
}

// shift does a shift or rotate (SDM 2, SAL/SAR/SHL/SHR and RCL/RCR/ROL/ROR).
// OF is set by the rule for a count of one, which is undefined for others.
func (c *CPU) shift(in *inst, v, count uint64) uint64 {
	size := in.size
	n := uint(8 * size)
	count &= countMask(size)
	if count == 0 {
		return v
	}
	k := uint(count)
	switch in.op {
	case shiftROL:
		k %= n
		v = v<<k | v>>(n-k)
		c.cf = v & 1
		c.of = v>>(n-1)&1 ^ c.cf
		return v
	case shiftROR:
		k %= n
		v = v>>k | v<<(n-k)
		c.cf = v >> (n - 1) & 1
		c.of = (v>>(n-1) ^ v>>(n-2)) & 1
		return v
	case shiftRCL:
		for k %= n + 1; k > 0; k-- {
			out := v >> (n - 1) & 1
			v = v<<1 | c.cf
			c.cf = out
		}
		c.of = v>>(n-1)&1 ^ c.cf
		return v
	case shiftRCR:
		c.of = v>>(n-1)&1 ^ c.cf
		for k %= n + 1; k > 0; k-- {
			out := v & 1
			v = v&sizeMask(size)>>1 | c.cf<<(n-1)
			c.cf = out
		}
		return v
	case shiftSHL, shiftSAL:
		c.cf = 0
		if k <= n {
			c.cf = v >> (n - k) & 1
		}
		v <<= k
		c.result(v, size)
		c.of = v>>(n-1)&1 ^ c.cf
	case shiftSHR:
		c.of = v >> (n - 1) & 1
		c.cf = v >> (k - 1) & 1
		v >>= k
		c.result(v, size)
	case shiftSAR:
		s := int64(signExtend(v, size))
		c.cf = uint64(s>>(k-1)) & 1
		v = uint64(s >> k)
		c.result(v, size)
		c.of = 0
	}
	c.af = 0
	return v
}

// execShiftDouble is SHLD (0xa4, 0xa5) and SHRD (0xac, 0xad).
func execShiftDouble(c *CPU, in *inst) status {
	return c.modify(in, func(c *CPU, in *inst, old uint64) uint64 {
		count := in.imm
		if in.op&1 != 0 {
			count = c.r[rCX]
		}
		n := uint(8 * in.size)
		k := uint(count & countMask(in.size))
		if k == 0 || k > n {
			return old
		}
		fill := c.get(in.reg, in.size)
		var r uint64
		if in.op < 0xa8 {
			c.cf = old >> (n - k) & 1
			r = old<<k | fill>>(n-k)
		} else {
			c.cf = old >> (k - 1) & 1
			r = old>>k | fill<<(n-k)
		}
		c.result(r, in.size)
		c.of = (r ^ old) >> (n - 1) & 1
		c.af = 0
		return r
	})
}

// The bit operations as opcodes number them.
const (
	bitTest = iota
	bitSet
	bitReset
	bitComplement
)

func bitOp(op uint8, v, bit uint64) uint64 {
	switch op {
	case bitSet:
		return v | bit
	case bitReset:
		return v &^ bit
	case bitComplement:
		return v ^ bit
	}
	return v
}

// execBitImm is BT, BTS, BTR and BTC with an immediate bit number.
func execBitImm(c *CPU, in *inst) status {
	n := in.imm & uint64(8*in.size-1)
	if in.op == bitTest {
		v, ok := c.source(in)
		if !ok {
			return handOver
		}
		c.cf = v >> n & 1
		return done
	}
	return c.modify(in, func(c *CPU, in *inst, old uint64) uint64 {
		c.cf = old >> n & 1
		return bitOp(in.op, old, 1<<n)
	})
}

// execBitReg is the same with the number in a register: in memory it
// addresses a bit string beyond the operand.
func execBitReg(c *CPU, in *inst) status {
	index := signExtend(c.get(in.reg, in.size), in.size)
	n := index & uint64(8*in.size-1)
	op := func(c *CPU, in *inst, old uint64) uint64 {
		c.cf = old >> n & 1
		return bitOp(in.op, old, 1<<n)
	}
	if !in.mem {
		if in.op == bitTest { // nothing is written, not even the upper half
			c.cf = c.r[in.rm] >> n & 1
			return done
		}
		return c.modify(in, op)
	}
	addr := c.linear(in.seg, c.offset(in)+uint64(int64(index)>>3)&^uint64(in.size-1))
	if in.op == bitTest {
		v, ok := c.load(addr, in.size)
		if !ok {
			return handOver
		}
		c.cf = v >> n & 1
		return done
	}
	return c.modifyAt(in, addr, op)
}

// execBitScan is BSF and BSR, and TZCNT and LZCNT with their prefix.
func execBitScan(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	width := uint64(8 * in.size)
	count := in.rep == repE
	var r uint64
	switch {
	case in.op == 0xbc && v != 0:
		r = uint64(bits.TrailingZeros64(v))
	case v != 0 && count:
		r = uint64(bits.LeadingZeros64(v)) - (64 - width)
	case v != 0:
		r = uint64(63 - bits.LeadingZeros64(v))
	case count:
		r = width
	default:
		// The destination keeps its value, as on all CPUs of both makers.
		c.logic(0, in.size)
		return done
	}
	if count {
		c.logic(r, in.size)
		c.cf = 0
		if v == 0 {
			c.cf = 1
		}
	} else {
		c.logic(1, in.size)
	}
	c.set(in.reg, in.size, r)
	return done
}

func execPopcnt(c *CPU, in *inst) status {
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	r := uint64(bits.OnesCount64(v))
	c.set(in.reg, in.size, r)
	c.logic(r, in.size)
	c.pv, c.sv = 1, 0 // all flags but ZF are cleared
	return done
}

func execBSwap(c *CPU, in *inst) status {
	if in.size == 8 {
		c.set(in.rm, 8, bits.ReverseBytes64(c.r[in.rm]))
	} else {
		c.set(in.rm, 4, uint64(bits.ReverseBytes32(uint32(c.r[in.rm]))))
	}
	return done
}

func execMovbe(c *CPU, in *inst) status {
	swap := func(v uint64) uint64 { return bits.ReverseBytes64(v) >> (64 - 8*uint(in.size)) }
	if in.op == 1 {
		return stored(c.store(c.address(in), swap(c.get(in.reg, in.size)), in.size))
	}
	v, ok := c.source(in)
	if !ok {
		return handOver
	}
	c.set(in.reg, in.size, swap(v))
	return done
}

// execCRC32 accumulates op bytes of the source.
func execCRC32(c *CPU, in *inst) status {
	v, ok := c.sourceSize(in, in.op)
	if !ok {
		return handOver
	}
	castagnoli := crc32.MakeTable(crc32.Castagnoli) // made when a guest first needs it
	// The table's function complements before and after, the instruction not.
	crc := ^uint32(c.get(in.reg, 4))
	for i := range in.op {
		crc = crc32.Update(crc, castagnoli, []byte{byte(v >> (8 * i))})
	}
	c.set(in.reg, 8, uint64(^crc))
	return done
}
