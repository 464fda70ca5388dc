package ring0

import (
	"math/rand/v2"

	"vmm/kvm"
)

// program makes random programs for lockPair: parts of straight code that jump to each other,
// one of them to an earlier one for some rounds.
type program struct {
	r    *rand.Rand
	mode lockMode
	code [lockCodeEnd - lockCode]byte
	used [lockCodeEnd - lockCode]bool
	at   uint64 // where the next instruction goes
	part []uint64
	// pointers and small are registers that mostly keep what they begin with.
	pointers, small []uint8
	undefined       uint16 // flags
	planner         translator
}

// form is a family of instructions with a ModRM.
type form struct {
	op    []byte
	ext   int   // ModRM.reg where that is a part of the opcode, else -1
	exts  int   // how many such there are from ext on
	imm   int   // bytes; -1 for those of the operand size, of at most 4
	must  byte  // a prefix
	bytes bool  // byte operands
	lock  bool  // LOCK may be in front
	vex   byte  // the VEX prefix's map; must is its pp
	wide  uint8 // VEX.L and W may be: bits 0 and 1
	only  byte  // 'm' for memory, 'r' for registers
}

var lockForms = func() (all []form) {
	for op := byte(0); op < 8; op++ {
		for k := range byte(4) {
			all = append(all, form{op: []byte{op<<3 | k}, ext: -1, bytes: k&1 == 0, lock: k < 2 && op != aluCmp})
		}
	}
	both := func(f form) {
		b := f
		b.op = append([]byte{}, f.op...)
		b.op[len(b.op)-1] &^= 1
		b.bytes = true
		all = append(all, f, b)
	}
	for range 3 {
		both(form{op: []byte{0x81}, exts: 7, imm: -1, lock: true})
		all = append(all, form{op: []byte{0x83}, exts: 7, imm: 1, lock: true})
	}
	both(form{op: []byte{0x85}, ext: -1})
	both(form{op: []byte{0x87}, ext: -1, lock: true})
	for range 4 {
		both(form{op: []byte{0x89}, ext: -1})
		both(form{op: []byte{0x8b}, ext: -1})
		all = append(all, form{op: []byte{0x8d}, ext: -1, only: 'm'}, form{op: []byte{0x63}, ext: -1})
		all = append(all, form{op: []byte{0x0f, 0xb6}, ext: -1}, form{op: []byte{0x0f, 0xb7}, ext: -1}, form{op: []byte{0x0f, 0xbe}, ext: -1}, form{op: []byte{0x0f, 0xbf}, ext: -1})
		both(form{op: []byte{0xff}, exts: 2, lock: true})
	}
	both(form{op: []byte{0xc7}, exts: 1, imm: -1})
	both(form{op: []byte{0xf7}, exts: 1, imm: -1})
	both(form{op: []byte{0xf7}, ext: 2, exts: 2, lock: true})
	both(form{op: []byte{0xf7}, ext: 4, exts: 2})
	both(form{op: []byte{0xf7}, ext: 6, exts: 2})
	all = append(all, form{op: []byte{0x69}, ext: -1, imm: -1}, form{op: []byte{0x6b}, ext: -1, imm: 1}, form{op: []byte{0x0f, 0xaf}, ext: -1})
	both(form{op: []byte{0xc1}, exts: 8, imm: 1})
	both(form{op: []byte{0xd1}, exts: 8})
	for range 3 {
		both(form{op: []byte{0xd3}, exts: 8})
	}
	for _, op := range []byte{0xa3, 0xab, 0xb3, 0xbb} {
		all = append(all, form{op: []byte{0x0f, op}, ext: -1, lock: op != 0xa3}, form{op: []byte{0x0f, op}, ext: -1, only: 'r'})
	}
	all = append(all, form{op: []byte{0x0f, 0xba}, ext: 4, exts: 4, imm: 1, lock: true}, form{op: []byte{0x0f, 0xa4}, ext: -1, imm: 1}, form{op: []byte{0x0f, 0xac}, ext: -1, imm: 1},
		form{op: []byte{0x0f, 0xa5}, ext: -1}, form{op: []byte{0x0f, 0xad}, ext: -1}, form{op: []byte{0x0f, 0xbc}, ext: -1}, form{op: []byte{0x0f, 0xbd}, ext: -1},
		form{op: []byte{0x0f, 0xbc}, ext: -1, must: 0xf3}, form{op: []byte{0x0f, 0xbd}, ext: -1, must: 0xf3}, form{op: []byte{0x0f, 0xb8}, ext: -1, must: 0xf3})
	both(form{op: []byte{0x0f, 0xb1}, ext: -1, lock: true})
	both(form{op: []byte{0x0f, 0xc1}, ext: -1, lock: true})
	for cc := range byte(16) {
		all = append(all, form{op: []byte{0x0f, 0x40 | cc}, ext: -1}, form{op: []byte{0x0f, 0x90 | cc}, exts: 1, bytes: true})
	}
	all = append(all, form{op: []byte{0x0f, 0xc3}, ext: -1, only: 'm'}, form{op: []byte{0xff}, ext: 6, exts: 1}, form{op: []byte{0x8f}, exts: 1}, form{op: []byte{0x0f, 0x1f}, ext: -1},
		form{op: []byte{0x0f, 0x18}, ext: -1, only: 'm'}, form{op: []byte{0x0f, 0xc7}, ext: 1, exts: 1, only: 'm', lock: true},
		form{op: []byte{0x0f, 0x38, 0xf0}, ext: -1, must: 0xf2}, form{op: []byte{0x0f, 0x38, 0xf1}, ext: -1, only: 'm'})
	for _, v := range []form{ // SSE, then AVX and BMI
		{op: []byte{0x0f, 0x10}}, {op: []byte{0x0f, 0x11}}, {op: []byte{0x0f, 0x28}}, {op: []byte{0x0f, 0x29}}, {op: []byte{0x0f, 0x6f}, must: 0x66}, {op: []byte{0x0f, 0x7f}, must: 0xf3},
		{op: []byte{0x0f, 0xd4}, must: 0x66}, {op: []byte{0x0f, 0xef}, must: 0x66}, {op: []byte{0x0f, 0x58}, must: 0xf2}, {op: []byte{0x0f, 0x2e}}, {op: []byte{0x0f, 0x2f}, must: 0x66},
		{op: []byte{0x0f, 0x6e}, must: 0x66}, {op: []byte{0x0f, 0x7e}, must: 0x66}, {op: []byte{0x0f, 0xd6}, must: 0x66}, {op: []byte{0x0f, 0x7e}, must: 0xf3}, {op: []byte{0x0f, 0x2a}, must: 0xf2},
		{op: []byte{0x0f, 0x2d}, must: 0xf3}, {op: []byte{0x0f, 0x50}}, {op: []byte{0x0f, 0xd7}, must: 0x66}, {op: []byte{0x0f, 0xc4}, must: 0x66, imm: 1}, {op: []byte{0x0f, 0xc5}, must: 0x66, imm: 1},
		{op: []byte{0x0f, 0x70}, must: 0x66, imm: 1}, {op: []byte{0x0f, 0x6e}}, {op: []byte{0x0f, 0x7e}}, {op: []byte{0x0f, 0xfc}}, {op: []byte{0x0f, 0x38, 0x17}, must: 0x66}, {op: []byte{0x0f, 0x38, 0x00}, must: 0x66},
		{op: []byte{0x0f, 0x3a, 0x14}, must: 0x66, imm: 1}, {op: []byte{0x0f, 0x3a, 0x16}, must: 0x66, imm: 1}, {op: []byte{0x0f, 0x3a, 0x22}, must: 0x66, imm: 1}, {op: []byte{0x0f, 0x3a, 0x0f}, must: 0x66, imm: 1},
		{op: []byte{0x0f, 0x12}}, {op: []byte{0x0f, 0x13}, only: 'm'}, {op: []byte{0x0f, 0x16}}, {op: []byte{0x0f, 0x2b}, only: 'm'},
		{op: []byte{0x6f}, vex: 1, must: 0xf3, wide: 1}, {op: []byte{0x7f}, vex: 1, must: 0xf3, wide: 1}, {op: []byte{0xd4}, vex: 1, must: 0x66, wide: 1}, {op: []byte{0x6e}, vex: 1, must: 0x66, wide: 2},
		{op: []byte{0x7e}, vex: 1, must: 0x66, wide: 2}, {op: []byte{0xd7}, vex: 1, must: 0x66, wide: 1}, {op: []byte{0x58}, vex: 2, must: 0x66, wide: 1}, {op: []byte{0x17}, vex: 2, must: 0x66, wide: 1},
		{op: []byte{0x39}, vex: 3, must: 0x66, wide: 1, imm: 1}, {op: []byte{0x2e}, vex: 1, must: 0x66}, {op: []byte{0x00}, vex: 2, must: 0x66, wide: 1},
		{op: []byte{0xf2}, vex: 2, wide: 2}, {op: []byte{0xf5}, vex: 2, wide: 2}, {op: []byte{0xf7}, vex: 2, wide: 2}, {op: []byte{0xf7}, vex: 2, must: 0x66, wide: 2}, {op: []byte{0xf7}, vex: 2, must: 0xf3, wide: 2},
		{op: []byte{0xf7}, vex: 2, must: 0xf2, wide: 2}, {op: []byte{0xf5}, vex: 2, must: 0xf2, wide: 2}, {op: []byte{0xf5}, vex: 2, must: 0xf3, wide: 2}, {op: []byte{0xf6}, vex: 2, must: 0xf2, wide: 2},
		{op: []byte{0xf0}, vex: 3, must: 0xf2, wide: 2, imm: 1},
	} {
		v.ext = -1
		all = append(all, v, v)
	}
	return append(all, form{op: []byte{0xf3}, vex: 2, ext: 1, exts: 3, wide: 2})
}()

// plainInstructions have no ModRM; the last ones are rare.
var plainInstructions = [][]byte{{0x98}, {0x99}, {0x48, 0x98}, {0x48, 0x99}, {0x66, 0x98}, {0x66, 0x99}, {0x9c}, {0x9c}, {0x9f}, {0x9e}, {0xf5}, {0xf8}, {0xf9}, {0xf5}, {0xf8}, {0xf9}, {0x90},
	{0x50}, {0x53}, {0x54}, {0x41, 0x55}, {0x41, 0x57}, {0x58}, {0x59}, {0x5a}, {0x41, 0x5d}, {0x41, 0x5e}, {0x6a, 0xf0}, {0x68, 1, 2, 3, 0x84}, {0x92}, {0x41, 0x95}, {0x41, 0x90}, {0x49, 0x90},
	{0x0f, 0xc8}, {0x48, 0x0f, 0xca}, {0x49, 0x0f, 0xcd}, {0xc8, 16, 0, 0, 0xc9}, {0xfc}, {0x0f, 0xae, 0xe8}, {0x0f, 0x77}, {0xc5, 0xf8, 0x77}, {0xd9, 0xe8, 0xdd, 0xd8}, {0xf3, 0x90}, {0xf3, 0x0f, 0x1e, 0xfa},
	{0x8c, 0xd8}, {0x48, 0x8c, 0xe1}, {0x66, 0x8c, 0xea}, {0x41, 0x8c, 0xc6}, {0x8c, 0xc8}, {0x5c}, {0xfc},
	{0xf3, 0x0f, 0xae, 0xc0}, {0xf3, 0x48, 0x0f, 0xae, 0xc9}, {0xf3, 0x49, 0x0f, 0xae, 0xd6}, {0xf3, 0x0f, 0xae, 0xda}, {0xf3, 0x48, 0x0f, 0xae, 0xd8},
	{0xb4, 0x7f}, {0xb6, 0x81}, {0x41, 0xbf, 1, 0, 0, 0x80}, {0x49, 0xbe, 1, 2, 3, 4, 5, 6, 7, 8}, {0x49, 0xc7, 0xc5, 0xff, 0xff, 0xff, 0xff}, {0x66, 0xb8, 0x34, 0x12}, {0x04, 0x81}, {0x48, 0x15, 1, 2, 3, 0xf4}, {0xa8, 0x55},
	{0x66, 0x3d, 0xff, 0x7f}, {0xa4}, {0x48, 0xab}, {0xfd}, {0x0f, 0x20, 0xd0}, {0x41, 0x0f, 0x20, 0xdf}, {0x0f, 0x20, 0xc1}, {0x0f, 0x20, 0xe2}, {0x0f, 0x01, 0xf8}, {0x9d}, {0xfa}, {0xfb}, {0x0f, 0x0b}, {0x0f, 0x05}, {0xf4}, {0xcd, 0x40}, {0x0f, 0x01, 0xca}, {0x0f, 0x01, 0xcb}, {0xd7}, {0x0f, 0xa2}}

// registers returns some numbers of general registers, without RSP.
func (p *program) registers(n int) (regs []uint8) {
	for _, r := range p.r.Perm(16)[:n+1] {
		if r != rSP && len(regs) < n {
			regs = append(regs, uint8(r))
		}
	}
	return regs
}

// target is a register that an instruction may change.
func (p *program) target() uint8 {
	for {
		r := uint8(p.r.IntN(16))
		kept := r == rSP
		for _, k := range append(append([]uint8{}, p.pointers...), p.small...) {
			kept = kept || r == k
		}
		if !kept || p.r.IntN(40) == 0 {
			return r
		}
	}
}

// modRM returns the bytes from ModRM on, and the bits X and B of REX.
func (p *program) modRM(reg, rm uint8, mem, segment bool) (out []byte, xb byte) {
	reg = reg & 7 << 3
	if segment { // whose base is the pointer
		i := p.small[p.r.IntN(len(p.small))]
		return append([]byte{reg | 4, byte(p.r.IntN(4))<<6 | i&7<<3 | 5}, le.AppendUint32(nil, uint32(p.r.IntN(256)))...), i >> 3 << 1
	}
	if !mem {
		return []byte{0xc0 | reg | rm&7}, rm >> 3
	}
	disp := uint32(int32(p.r.IntN(256) - 128))
	if p.r.IntN(4) > 0 {
		disp &^= 31
	}
	switch p.r.IntN(12) {
	case 0: // an address
		return append([]byte{reg | 4, 0x25}, le.AppendUint32(nil, lockData+uint32(p.r.IntN(0x3000)))...), 0
	case 1: // an index alone
		i := p.small[p.r.IntN(len(p.small))]
		return append([]byte{reg | 4, byte(p.r.IntN(4))<<6 | i&7<<3 | 5}, le.AppendUint32(nil, lockData+uint32(p.r.IntN(0x3000)))...), i >> 3 << 1
	case 2: // relative to RIP
		return append([]byte{reg | 5}, le.AppendUint32(nil, uint32(lockData-lockCode+p.r.IntN(0x3000)))...), 0
	}
	b := p.pointers[p.r.IntN(len(p.pointers))]
	if p.r.IntN(8) == 0 {
		b = rSP
	}
	mod := []byte{0x40, 0x80, 0x40, 0x80}[p.r.IntN(4)]
	if p.r.IntN(4) == 0 && b&7 != rBP {
		mod = 0
	}
	out, xb = []byte{mod | reg | b&7}, b>>3
	if i := p.small[p.r.IntN(len(p.small))]; p.r.IntN(3) == 0 {
		out, xb = []byte{mod | reg | 4, byte(p.r.IntN(4))<<6 | i&7<<3 | b&7}, b>>3|i>>3<<1
	} else if b&7 == rSP {
		out = append(out, 0x24)
	}
	switch mod {
	case 0x40:
		out = append(out, byte(disp))
	case 0x80:
		out = le.AppendUint32(out, disp*8)
	}
	return out, xb
}

// instruction returns a random one.
func (p *program) instruction() (code []byte) {
	if p.r.IntN(5) == 0 {
		n := len(plainInstructions)
		if p.r.IntN(12) > 0 {
			n -= 19
		}
		return plainInstructions[p.r.IntN(n)]
	}
	f := &lockForms[p.r.IntN(len(lockForms))]
	reg, rm := p.target(), p.target()
	if p.r.IntN(4) == 0 {
		rm = uint8(p.r.IntN(8)) // often a pointer, which then goes elsewhere
	}
	if f.ext >= 0 {
		reg = uint8(f.ext)
		if f.exts > 1 {
			reg += uint8(p.r.IntN(f.exts))
		}
	}
	mem := p.r.IntN(2) == 0 && f.only != 'r' || f.only == 'm'
	segment := mem && p.r.IntN(12) == 0
	m, xb := p.modRM(reg, rm, mem, segment)
	if segment {
		code = append(code, byte(0x64+p.r.IntN(2)))
	}
	size := 4
	if f.vex != 0 {
		pp := map[byte]byte{0: 0, 0x66: 1, 0xf3: 2, 0xf2: 3}[f.must]
		third := ^p.target() & 15 << 3
		if f.wide == 2 || p.r.IntN(3) == 0 {
			third &= 0x78
		}
		if f.op[0] != 0xd4 && f.op[0] != 0 && f.op[0] < 0xf2 || f.op[0] == 0xf0 {
			third = 0x78
		}
		third |= pp | byte(p.r.IntN(2))&f.wide<<2 | byte(p.r.IntN(2))<<7&(f.wide<<6)
		code = append(code, 0xc4, ^(reg>>3<<2|xb)<<5|f.vex, third)
	} else {
		if mem && f.lock && p.r.IntN(4) == 0 {
			code = append(code, 0xf0)
		}
		if f.must != 0 {
			code = append(code, f.must)
		}
		rex := reg>>3<<2 | xb
		switch p.r.IntN(4) {
		case 0:
			if f.must == 0 && !f.bytes {
				code, size = append(code, 0x66), 2
			}
		case 1, 2:
			rex |= 8
		}
		if rex != 0 || p.r.IntN(3) == 0 {
			code = append(code, 0x40|rex)
			if rex&8 != 0 {
				size = 4
			}
		}
	}
	code = append(append(code, f.op...), m...)
	n := f.imm
	if n < 0 {
		if n = size; f.bytes {
			n = 1
		}
	}
	for range n {
		code = append(code, byte(p.r.Uint32()>>p.r.IntN(8)))
	}
	return code
}

// put adds an instruction, behind one that defines flags which it reads.
func (p *program) put(code []byte) {
	var in inst
	if decodeComplete(code, &in, mode64) {
		pl := p.planner.planOf(&in, code[:in.len])
		reads, kills := pl.reads, pl.kills
		if pl.emit == nil && in.form == (vectorForm{}) {
			reads = arithFlags
		}
		if in.undefined != 0 && pl.emit == nil && in.op != 2 && in.op != 3 { // RCL, RCR
			reads = 0
		}
		if reads&p.undefined != 0 && p.r.IntN(50) > 0 {
			p.raw([]byte{0x3c, byte(p.r.Uint32())}) // cmp al, ...
			p.undefined = 0
		}
		p.undefined = p.undefined&^kills | in.undefined
	}
	p.raw(code)
}

func (p *program) raw(code []byte) {
	for _, b := range code {
		p.code[p.at-lockCode], p.used[p.at-lockCode] = b, true
		p.at++
	}
}

// relative puts an opcode and the distance to a target.
func (p *program) relative(to uint64, op ...byte) {
	p.raw(append(op, le.AppendUint32(nil, uint32(to-p.at-uint64(len(op))-4))...))
}

// define has all flags be defined.
func (p *program) define() {
	if p.undefined != 0 {
		p.put([]byte{0x3c, byte(p.r.Uint32())})
	}
}

// make makes a program, and returns it with where it begins.
func (p *program) make() (code []byte, at uint64) {
	p.planner.tlb, p.planner.components, p.planner.smap = tlbKernel, 7, p.mode.smap
	if p.mode.user {
		p.planner.tlb = tlbUser
	}
	regs := p.registers(6)
	p.pointers, p.small = regs[:4], regs[4:]
	const room = 0x200
	for range 2 + p.r.IntN(5) {
		for {
			at := lockCode + uint64(p.r.IntN(len(p.code)-room))
			if p.r.IntN(3) == 0 {
				at = at&^pageMask + pageSize - uint64(p.r.IntN(24)) // its instructions cross pages
			}
			if at+room < lockCodeEnd && !p.used[at-lockCode] && !p.used[at-lockCode+room] {
				for i := range uint64(room) {
					p.used[at-lockCode+i] = true
				}
				p.part = append(p.part, at)
				break
			}
		}
	}
	back := p.r.IntN(len(p.part))
	for i, at := range p.part {
		p.at, p.undefined = at, 0
		if i == 0 && p.mode.smap && p.r.IntN(4) > 0 {
			p.raw([]byte{0x0f, 0x01, 0xcb}) // stac
		}
		var later []uint64
		if i+1 < len(p.part) {
			later = p.part[i+1:]
		}
		for n := 1 + p.r.IntN(14); n > 0; n-- {
			p.put(p.instruction())
			if len(later) > 0 && p.r.IntN(8) == 0 {
				p.define()
				p.relative(later[p.r.IntN(len(later))], 0x0f, 0x80|byte(p.r.IntN(16)))
			}
			if p.r.IntN(16) == 0 { // over the next one
				p.define()
				next := p.instruction()
				p.raw([]byte{0x70 | byte(p.r.IntN(16)), byte(len(next))})
				p.put(next)
				p.define()
			}
		}
		p.define()
		if i >= back && p.r.IntN(2) == 0 { // some rounds
			p.raw(append([]byte{0xff, 0x0c, 0x25}, le.AppendUint32(nil, lockHandlers+0xfe0-uint32(8*i))...))
			if p.mode.user {
				p.at -= 7
				p.raw(append([]byte{0xff, 0x0c, 0x25}, le.AppendUint32(nil, lockData+0x500+uint32(8*i))...))
			}
			p.relative(p.part[back], 0x0f, 0x89) // jns
		}
		if len(later) == 0 {
			p.raw([]byte{0xf4})
			continue
		}
		p.leave(later[p.r.IntN(len(later))])
	}
	return p.code[:], p.part[0]
}

// leave goes to another part in one of many ways.
func (p *program) leave(to uint64) {
	t := p.target()
	b, r := t>>3, t&7
	load := func() { p.raw(append([]byte{0x48 | b, 0xc7, 0xc0 | r}, le.AppendUint32(nil, uint32(to))...)) }
	switch p.r.IntN(7) {
	case 0:
		p.relative(to, 0xe9)
	case 1:
		p.relative(to, 0xe8) // call
	case 2:
		load()
		p.raw([]byte{0x40 | b, 0xff, 0xe0 | r}) // jmp
	case 3:
		load()
		p.raw([]byte{0x40 | b, 0xff, 0xd0 | r}) // call
	case 4:
		load()
		p.raw([]byte{0x40 | b, 0x50 | r, 0xc3}) // push; ret
	case 5:
		load()
		p.raw([]byte{0x40 | b, 0x50 | r, 0xff, 0x24, 0x24}) // push; jmp [rsp]
	case 6:
		load()
		p.raw([]byte{0x6a, 0, 0x40 | b, 0x50 | r, 0xc2, 8, 0}) // push 0; push; ret 8
	}
}

// registersFor returns what a program begins with.
func (p *program) registersFor(at uint64) kvm.Regs {
	var g [16]uint64
	for i := range g {
		g[i] = []uint64{p.r.Uint64(), uint64(p.r.Uint32()), p.r.Uint64() >> 56, ^(p.r.Uint64() >> 56), 0}[p.r.IntN(5)]
	}
	for _, i := range p.pointers {
		page := []uint64{0, 1, 2}[p.r.IntN(3)]<<12 + lockData
		if p.r.IntN(12) == 0 {
			page = []uint64{3, 4, 5, 6, 7, 8, 9}[p.r.IntN(7)]<<12 + lockData
		}
		off := uint64(p.r.IntN(pageSize))
		if p.r.IntN(3) == 0 {
			off = pageSize - uint64(p.r.IntN(40)) // its end
		}
		if p.r.IntN(5) > 0 {
			off &^= 31
		}
		g[i] = page + off
		if p.r.IntN(60) == 0 {
			g[i] = []uint64{0, 1 << 63, ^uint64(0), 0x7ffffffffff8, 0x800000000000, 0xffff800000000000}[p.r.IntN(6)]
		}
	}
	for _, i := range p.small {
		g[i] = uint64(p.r.IntN(9))
	}
	g[rSP] = lockData + 0x2000 - 8*uint64(p.r.IntN(60))
	if p.r.IntN(8) == 0 {
		g[rSP] += uint64(p.r.IntN(8))
	}
	flags := uint64(flagOne) | uint64(p.r.Uint32())&(arithFlags|flagIF)
	return kvm.Regs{RAX: g[0], RCX: g[1], RDX: g[2], RBX: g[3], RSP: g[4], RBP: g[5], RSI: g[6], RDI: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15], RIP: at, RFLAGS: flags}
}
