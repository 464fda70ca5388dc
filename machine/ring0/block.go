package ring0

import "unsafe"

// Instructions are decoded a block at a time: those that follow each other to a jump,
// within a page. A block is kept with its bytes, and used again where they are the same,
// so that code may change as it likes. One that changes in the block that is executed is
// seen with the next block; CPUs see it at once, but no program is known to need that.

const (
	// maxBlock and maxBlockBytes bound a block, maxInsts those of all blocks: they are all
	// dropped when there are more.
	maxBlock      = 16
	maxBlockBytes = 64
	maxInsts      = 1 << 16
	maxInst       = 15 // bytes of an instruction (SDM 2, 2.3.11)
	cacheSize     = 1 << 13
)

// block is a block of decoded instructions with what it was decoded from.
type block struct {
	key   uint64 // the physical address of the first byte, plus one, and the mode: 0 is empty
	insts []inst
	bytes int
	code  [maxBlockBytes]byte
}

// blocks are the blocks of a CPU.
type blocks struct {
	table [cacheSize]block
	insts []inst // of all of them
	spare []inst // those of before, of which some may be being executed
	split [1]inst

	// code is what the block was decoded from that block returned last, and at the value of
	// RIP in front of it: who executes the bytes themselves takes those that were decoded, for
	// the guest may have others in their place by now.
	code []byte
	at   uint64
	last [16]byte // of split
	// calls counts those of block: who executes a block ends with it when there was another,
	// for code is that one's.
	calls uint64
}

// block returns the instructions at RIP, at least one; nil if they cannot be fetched.
func (c *CPU) block() []inst {
	c.cache.calls++
	at := c.linear(segCS, c.r[rIP])
	if c.code.tag != at>>12+1 && !c.fetch(at) {
		return nil
	}
	key := (c.code.gpa + at&pageMask + 1) | uint64(c.mode)<<62
	b := &c.cache.table[(key^key>>13)%cacheSize]
	code := c.codeAt(at)
	c.cache.at = c.r[rIP]
	if b.key == key && string(code[:b.bytes]) == string(b.code[:b.bytes]) || c.decodeBlock(b, key, code) {
		c.cache.code = b.code[:b.bytes]
		return b.insts
	}
	return c.decodeSplit(at, code)
}

// decodeBlock makes b the block of the instructions in code. It reports false if the first
// goes on in the next page.
func (c *CPU) decodeBlock(b *block, key uint64, code []byte) bool {
	if len(c.cache.insts)+maxBlock > maxInsts {
		if c.cache.spare == nil { // which many a guest never needs
			c.cache.spare = make([]inst, 0, maxInsts)
		}
		c.cache.insts, c.cache.spare = c.cache.spare[:0], c.cache.insts
		for i := range c.cache.table {
			c.cache.table[i].key = 0
		}
	}
	b.key = 0
	mine := b.code[:copy(b.code[:], code)] // which the guest cannot change
	pageEnds := len(code) <= len(b.code)
	from, n := len(c.cache.insts), 0
	insts := c.cache.insts[from : from+maxBlock]
	count := 0
	for count < maxBlock && n < len(mine) {
		in := &insts[count]
		if !c.decodeInst(mine[n:], in) {
			if len(mine)-n < maxInst && (pageEnds || count > 0) { // perhaps it is cut off
				break
			}
			*in = inst{exec: c.undecoded(), len: uint8(min(maxInst, len(mine)-n)), ends: true}
		}
		n += int(in.len)
		count++
		if in.ends {
			break
		}
	}
	if count == 0 {
		return false
	}
	c.cache.insts = c.cache.insts[:from+count]
	b.key, b.bytes, b.insts = key, n, insts[:count:count]
	return true
}

// decodeSplit decodes an instruction that begins at the end of a page.
func (c *CPU) decodeSplit(at uint64, begin []byte) []inst {
	b := &c.cache.last
	*b = [16]byte{}
	n := copy(b[:], begin)
	in := &c.cache.split[0]
	c.cache.code = b[:]
	if c.decodeInst(b[:n], in) {
		return c.cache.split[:]
	}
	first := c.code
	ok := c.fetch((at | pageMask) + 1)
	next := c.code
	c.code = first
	if !ok {
		return nil
	}
	copy(b[n:], unsafe.Slice((*byte)(next.host), pageSize))
	if !c.decodeInst(b[:], in) {
		*in = inst{exec: c.undecoded(), len: maxInst}
	}
	return c.cache.split[:]
}
