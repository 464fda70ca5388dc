package ring0

import "slices"

// Translated is the number of places where translations leave, of all that were made.
func (c *CPU) Translated() int { return len(c.translator.sites) }

// Changed tells that a test has changed memory, and has pages guarded after so many comparisons, at
// least one: who has a page guarded begins its block anew.
func (c *CPU) Changed(guardEvery int32) {
	c.tables.Wrote(0, c.tables.mem.Size())
	if t := c.translator; t != nil {
		c.endGuards()
		clear(t.waits)
		t.guardEvery, c.frame.untilGuard = guardEvery, guardEvery
	}
}

// Comparable tells of an instruction whether the host's CPU can be given it in a test as it
// is, with RBX, RSI, RDI and RSP pointing into memory that a test may change: it does not
// jump, nor address memory by other registers, nor lie beyond its bytes. undefined are the
// flags that it leaves undefined.
func Comparable(code []byte) (undefined uint64, ok bool) {
	var in inst
	if !decodeComplete(code, &in, mode64) || int(in.len) != len(code) || in.priv != 0 || in.seg != segNone || in.addr4 {
		return 0, false
	}
	switch op := code[len(code)-int(in.len):]; {
	case in.mem && in.base != rBX, in.mem && in.index != rZero, in.mem && in.disp > 100:
		return 0, false
	case in.mem && bitString(op): // reaches beyond its operand
		return 0, false
	case transfers(op):
		return 0, false
	}
	return uint64(in.undefined), true
}

// bitString reports whether an instruction is BT, BTS, BTR or BTC with the number in a register.
func bitString(code []byte) bool {
	i := slices.Index(code, 0x0f)
	return i >= 0 && i+1 < len(code) && code[i+1]&0xe7 == 0xa3
}

// transfers reports whether an instruction goes elsewhere, or leaves the program.
func transfers(code []byte) bool {
	for i, b := range code {
		switch {
		case b == 0x66 || b == 0xf0 || b == 0xf2 || b == 0xf3 || b&0xf0 == 0x40, b == 0x2e || b == 0x36 || b == 0x3e || b == 0x26:
			continue
		case b == 0x0f && i+1 < len(code):
			op := code[i+1]
			switch op {
			case 0x01, 0x0b, 0x31, 0xae, 0xc7: // of the machine, or of an area of memory
				return true
			}
			return op&0xf0 == 0x80 || op == 0x05 || op == 0x34 || op >= 0xa0 && op <= 0xa2 || op == 0xba && code[i+2]>>3&7 < 4
		case b == 0xff:
			return code[i+1]>>3&7 >= 2 && code[i+1]>>3&7 <= 5
		}
		return b&0xf0 == 0x70 || b >= 0xe0 && b <= 0xef || b == 0xc2 || b == 0xc3 || b == 0xca || b == 0xcb || b >= 0xcc && b <= 0xcf ||
			b == 0x8e || b >= 0xa0 && b <= 0xa3 || b == 0x9a || b == 0x9d || b == 0xc8 || b == 0xc9 || b == 0xd7 || b == 0xf1 || b >= 0x6c && b <= 0x6f
	}
	return true
}

// Rewritten returns an instruction with its memory operand at RBX plus 32, if it has one, and
// its length; nil for one that cannot be had so or that is not for a comparison. A length of 0
// says that the bytes are no instruction.
func Rewritten(code []byte) (out []byte, n int) {
	var in inst
	if !decodeComplete(code, &in, mode64) {
		return nil, 0
	}
	n = int(in.len)
	code = code[:n]
	if in.priv != 0 || in.seg != segNone || in.addr4 || transfers(code) || in.indexSize != 0 || in.mem && bitString(code) {
		return nil, n
	}
	if !in.mem {
		return code, n
	}
	out = append(out, code...)
	i := 0
	for out[i] == 0x66 || out[i] == 0xf0 || out[i] == 0xf2 || out[i] == 0xf3 || out[i] == 0x2e || out[i] == 0x3e {
		i++
	}
	switch {
	case out[i] == 0xc5:
		i += 3
	case out[i] == 0xc4:
		out[i+1] |= 0x60 // no X, no B
		i += 4
	case out[i] == 0x62:
		return nil, n
	default:
		if out[i]&0xf0 == 0x40 {
			out[i] &^= 3
			i++
		}
		if out[i] == 0x0f {
			if i++; out[i] == 0x38 || out[i] == 0x3a {
				i++
			}
		}
		i++
	}
	// ModRM, SIB and displacement give way to ModRM and 8 bits.
	modrm := out[i]
	end := i + 1
	if modrm&7 == 4 {
		end++
		if out[i+1]&7 == 5 && modrm>>6 == 0 {
			end += 4
		}
	} else if modrm&0xc7 == 5 {
		end += 4
	}
	end += [...]int{0, 1, 4, 0}[modrm>>6]
	return append(append(out[:i:i], 0x43|modrm&0x38, 32), code[end:]...), n
}
