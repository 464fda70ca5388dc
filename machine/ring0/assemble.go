package ring0

import "encoding/binary"

// Registers of the host that translated code uses for itself; the others hold the guest's.
const (
	hostRAX = 0 // an address, flags, or a value
	hostRCX = 1 // a count, or a value
	hostRSP = 4 // the frame
)

// inFrame in homes says that a guest's register is in the frame only.
const inFrame = 0xff

// homes are the host's registers that hold the guest's in translated code, by number: where a
// guest uses those of the translator, others have them.
var homes = [16]uint8{
	rAX: 14, rCX: 15, rDX: 2, rBX: 3, rSP: 13, rBP: 5, rSI: 6, rDI: 7,
	r8: 8, r9: 9, r10: 10, r11: 11, r12: 12, r13: inFrame, r14: inFrame, r15: inFrame,
}

// operand is what ModRM.rm names: a register of the host, or memory.
type operand struct {
	reg   uint8 // of a register
	mem   bool
	base  uint8
	index uint8 // noIndex for none
	scale uint8 // a shift
	disp  int32

	noBase bool // an index alone
}

const noIndex = 0xff

func register(n uint8) operand { return operand{reg: n} }
func memory(base uint8, d int32) operand {
	return operand{mem: true, base: base, index: noIndex, disp: d}
}
func inFrameAt(offset uintptr) operand       { return memory(hostRSP, int32(offset)) }
func (o operand) indexed(r uint8) operand    { o.index = r; return o }
func (o operand) scaled(shift uint8) operand { o.scale = shift; return o }

// assembler writes machine code of the host.
type assembler struct {
	b []byte
	n int
}

func (a *assembler) bytes(b ...byte) { a.n += copy(a.b[a.n:], b) }

func (a *assembler) u32(v uint32) {
	binary.LittleEndian.PutUint32(a.b[a.n:], v)
	a.n += 4
}

func (a *assembler) u64(v uint64) {
	binary.LittleEndian.PutUint64(a.b[a.n:], v)
	a.n += 8
}

// imm writes an immediate of an operand size, which has four bytes at most.
func (a *assembler) imm(v uint64, size uint8) {
	switch size {
	case 1:
		a.bytes(byte(v))
	case 2:
		a.bytes(byte(v), byte(v>>8))
	default:
		a.u32(uint32(v))
	}
}

// Opcodes of the two and three-byte maps have those bytes in front.
const (
	map0F   = 0x0f00
	map0F38 = 0x0f3800
	map0F3A = 0x0f3a00
)

// op writes an instruction of an operand size with a ModRM. reg is a register or an opcode's
// extension. Those of one byte are never AH, CH, DH or BH, but for a register of rm with
// byteHigh, for which no other operand may need a REX prefix.
func (a *assembler) op(size uint8, opcode uint32, reg uint8, rm operand) {
	a.opPrefixed(0, size, opcode, reg, rm)
}

// opPrefixed is op with a prefix in front, such as REP's, if that is not 0.
func (a *assembler) opPrefixed(prefix byte, size uint8, opcode uint32, reg uint8, rm operand) {
	if prefix != 0 {
		a.bytes(prefix)
	}
	if size == 2 {
		a.bytes(0x66)
	}
	rex := reg >> 3 << 2
	if size == 8 {
		rex |= 8
	}
	if rm.mem {
		rex |= rm.base >> 3
		if rm.index != noIndex {
			rex |= rm.index >> 3 << 1
		}
	} else {
		rex |= rm.reg >> 3 & 1
	}
	if !rm.mem && rm.reg >= byteHigh { // which no instruction with a REX prefix has
		rm.reg = rm.reg&^byteHigh | 4
	} else if rex != 0 || size == 1 || opcode>>4 == 0xfb { // byte registers; MOVZX and MOVSX have them, too
		a.bytes(0x40 | rex)
	}
	if opcode > 0xffff {
		a.bytes(byte(opcode >> 16))
	}
	if opcode > 0xff {
		a.bytes(byte(opcode >> 8))
	}
	a.bytes(byte(opcode))
	a.modRM(reg, rm)
}

// modRM writes ModRM, SIB and displacement.
func (a *assembler) modRM(reg uint8, rm operand) {
	reg = reg & 7 << 3
	if !rm.mem {
		a.bytes(0xc0 | reg | rm.reg&7)
		return
	}
	if rm.noBase {
		a.bytes(reg|4, rm.scale<<6|rm.index&7<<3|5)
		a.u32(uint32(rm.disp))
		return
	}
	mod, small := byte(0x80), rm.disp == int32(int8(rm.disp))
	switch {
	case rm.disp == 0 && rm.base&7 != rBP:
		mod = 0
	case small:
		mod = 0x40
	}
	switch {
	case rm.index != noIndex:
		a.bytes(mod|reg|4, rm.scale<<6|rm.index&7<<3|rm.base&7)
	case rm.base&7 == rSP:
		a.bytes(mod|reg|4, 0x24)
	default:
		a.bytes(mod | reg | rm.base&7)
	}
	switch mod {
	case 0x40:
		a.bytes(byte(rm.disp))
	case 0x80:
		a.u32(uint32(rm.disp))
	}
}

// Instructions that translated code is made of beside the guest's.

func (a *assembler) load(size, reg uint8, from operand) { a.op(size, 0x8b, reg, from) }
func (a *assembler) store(size, reg uint8, to operand)  { a.op(size, 0x89, reg, to) }
func (a *assembler) move(to, from uint8)                { a.op(8, 0x8b, to, register(from)) }
func (a *assembler) lea(reg uint8, m operand)           { a.op(8, 0x8d, reg, m) }
func (a *assembler) arithmetic(size, ext uint8, rm operand, imm int32) {
	if imm == int32(int8(imm)) {
		a.op(size, 0x83, ext, rm)
		a.bytes(byte(imm))
		return
	}
	a.op(size, 0x81, ext, rm)
	a.u32(uint32(imm))
}

// storeImm stores a sign-extended immediate.
func (a *assembler) storeImm(size uint8, to operand, v uint32) {
	a.op(size, 0xc7, 0, to)
	a.u32(v)
}

// loadImm loads an immediate in its shortest form.
func (a *assembler) loadImm(reg uint8, v uint64) {
	switch {
	case v>>32 == 0:
		if reg >= 8 {
			a.bytes(0x41)
		}
		a.bytes(0xb8 | reg&7)
		a.u32(uint32(v))
	case v == uint64(int64(int32(v))):
		a.op(8, 0xc7, 0, register(reg))
		a.u32(uint32(v))
	default:
		a.bytes(0x48|reg>>3, 0xb8|reg&7)
		a.u64(v)
	}
}

// jump writes JMP, and jumpIf a conditional one; both return where their displacement is,
// for land.
func (a *assembler) jump() (site int) {
	a.bytes(0xe9)
	a.u32(0)
	return a.n - 4
}

func (a *assembler) jumpIf(condition uint8) (site int) {
	a.bytes(0x0f, 0x80|condition)
	a.u32(0)
	return a.n - 4
}

// callTo writes CALL.
func (a *assembler) callTo(to int) {
	a.bytes(0xe8)
	a.u32(uint32(to - a.n - 4))
}

// land has the jump at site go to where to is.
func (a *assembler) land(site, to int) {
	binary.LittleEndian.PutUint32(a.b[site:], uint32(to-site-4))
}

// landAll is land for several jumps.
func (a *assembler) landAll(sites []int, to int) {
	for _, site := range sites {
		a.land(site, to)
	}
}

// Conditions of jumps (SDM 1, appendix B).
const (
	ifBelow      = 2
	ifAboveEqual = 3
	ifNotEqual   = 5
	ifEqual      = 4
	ifBelowEqual = 6
	ifAbove      = 7
	ifSign       = 8
)

// Extensions of opcodes 0x81 and 0x83.
const (
	extOR  = 1
	extAND = 4
	extSUB = 5
	extCMP = 7
)
