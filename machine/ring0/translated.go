package ring0

import (
	"fmt"
	"slices"
	"unsafe"

	"vmm/internal/x86"
)

// Translate has Run translate what it executes. The error is that of native.NewRegion;
// without a translator, all is interpreted.
func (c *CPU) Translate() (err error) {
	c.translator, err = newTranslator(c.frame, c.unit, &c.tables.room)
	c.forgetJumps() // a table that is just zero leads from 0 to nowhere
	return err
}

// translatable reports whether Run may use translations now, budget instructions from its end.
func (c *CPU) translatable(budget int) bool {
	levels := c.cpl == 0 || c.cpl == 3 // what is privileged is told by the TLB there
	return c.translator != nil && levels && c.mode == mode64 && c.Breakpoints == nil && c.own.code == 0 && c.sys&flagRF == 0 && budget > 1 && len(c.supplied) == 0 && c.sent == 0
}

// runTranslations is runTranslated; a test takes its place to compare what that does.
var runTranslations = (*CPU).runTranslated

// runTranslated executes translations from RIP on until there is none, or until Run has to look
// up. It reports whether the instruction at RIP, and only that, is to be interpreted.
func (c *CPU) runTranslated() (one bool) {
	t, f := c.translator, c.frame
	link, from, resets, far := 0, uint32(0), t.resets, false
	for f.Attention.Load() == 0 {
		rip := f.r[rIP]
		if c.code.tag != rip>>12+1 && !c.fetch(rip) {
			c.forgetFailure()
			return false
		}
		to := f.knownAt(c.tlbNumber, hostAddress(c.codeAt(rip)))
		if to == 0 || link != 0 {
			n := c.translation(rip)
			if n == 0 {
				return true
			}
			b := &t.blocks[n]
			to = t.region.Base + uint64(b.entry)
			if link != 0 && t.resets == resets && b.next == 0 && t.samePage(from, n) {
				t.land(link, int(b.entry))
			}
			if b.next == 0 {
				f.known[c.tlbNumber][knownSlot(b.host)] = jump{b.host, to}
			} else { // which may be another page's when this one is still the same
				f.jumps[c.tlbNumber].of(rip>>12+1, c.code.global)
			}
		}
		if far {
			f.addJump(c.tlbNumber, rip, to, c.code.global)
		}
		link, far = 0, false
		f.page, f.vectorsWanted = rip&^pageMask, 0
		s := c.enterTranslated(to)
		for (s.kind == exitRead || s.kind == exitWrite) && c.filled(s) {
			s = c.enterTranslated(t.region.Base + uint64(s.at))
		}
		if s.kind != exitFar && s.kind != exitTrap {
			f.r[rIP] = f.page + uint64(s.offset)
		}
		guarded := f.untilGuard < 0
		if guarded {
			c.guard(s.block)
		}
		switch s.kind {
		case exitFar:
			far = true
		case exitJump:
			far = true
			if !canonical(f.address) {
				return true
			}
			f.r[rIP] = f.address
			f.r[rSP] += uint64(int32(s.at))
		case exitLink:
			link, from, resets = int(s.at), s.block, t.resets
		case exitHead:
			if !guarded && f.Attention.Load() == 0 {
				t.replace(s.block)
				f.forgetKnown(&t.blocks[s.block])
			}
		case exitVector:
			if !c.unitState() {
				return true
			}
		case exitTrap:
			c.trapInTranslated()
			return true
		case exitInterpret, exitRead, exitWrite:
			return true
		}
	}
	return false
}

// samePage reports whether a block may lead to another by itself. Their addresses are in one
// page, but while the guest changes what that is mapped to, there may be other code by now.
func (t *translator) samePage(from, to uint32) bool {
	a, b := &t.blocks[from], &t.blocks[to]
	return a.host&^pageMask == b.host&^pageMask && a.tlb == b.tlb
}

// enterTranslated executes translated code from an address on, and returns where it has left.
func (c *CPU) enterTranslated(at uint64) *exitSite {
	t, f := c.translator, c.frame
	flags := c.flags()
	f.flags = flags&0xff<<8 | flags>>11&1
	f.entry = at
	f.vectorsReady = 0
	if c.unitHas {
		c.unit.PrepareExtended()
		f.vectorsReady = 1
	}
	t.region.Enter(&f.Frame, t.region.Base+uint64(t.enter))
	if f.moved != 0 {
		c.arrived()
	}
	if f.vectorsWanted != 0 { // for they were in use
		c.unitChanged = true
	}
	c.setArith(f.flags>>8&0xff | f.flags&1<<11)
	s := &t.sites[f.site]
	if f.site == siteRead || f.site == siteWrite { // a routine's caller knows what to go on with
		const call = 5
		came := uint32(f.came - t.region.Base)
		s.offset, s.at = t.looks[siteAt(t.looks, came)].offset, came-call
	}
	return s
}

// siteAt returns the number of the site at a place in the region, or one that is not there.
func siteAt(sites []codeSite, at uint32) int {
	i, ok := slices.BinarySearchFunc(sites, at, func(s codeSite, at uint32) int { return int(s.at) - int(at) })
	if !ok {
		return len(sites)
	}
	return i
}

// filled brings into the TLB what translated code has not found there. It reports false where
// it cannot, or where the access goes on in another page.
func (c *CPU) filled(s *exitSite) bool {
	addr := c.frame.address
	e := c.entry(addr)
	tag, access := e.read, uint32(0)
	if s.kind == exitWrite {
		tag, access = e.write, pfWrite
	}
	if tag == addr&^pageMask || c.inWatchedPage(addr) {
		return false
	}
	if c.fill(addr, access) == nil {
		c.forgetFailure()
		return false
	}
	return true
}

// translation returns the number of the block at an address in the page of c.code, 0 where the
// instruction there has no translation.
func (c *CPU) translation(at uint64) uint32 {
	t, code := c.translator, c.codeAt(at)
	if t.untranslated(code, c.tlbNumber) {
		return 0
	}
	t.components, _ = c.xcr0()
	t.smap = c.sregs.CR4&x86.CR4SMAP != 0
	resets := t.resets
	b := t.translate(c.code.gpa>>12, code, nil, c.tlbNumber)
	if b == 0 && len(code) < maxInst && cutOff(code) {
		b = c.splitTranslation(at, code)
	}
	if t.resets != resets { // it began anew
		c.forgetJumps()
	}
	if b == 0 && len(code) >= maxInst {
		t.none[noneSlot(hostAddress(code))] = noTranslation{hostAddress(code), le.Uint64(code), c.tlbNumber}
	}
	return b
}

// noTranslation is code whose first instruction has no translation for a TLB.
type noTranslation struct {
	host, code uint64
	tlb        int
}

// maxNone is how many of these a translator knows.
const maxNone = 256

func noneSlot(host uint64) uint64 { return host * knownHash >> 16 % maxNone }

// untranslated reports whether it is known that the first instruction of code has no translation.
func (t *translator) untranslated(code []byte, tlb int) bool {
	host := hostAddress(code)
	n := &t.none[noneSlot(host)]
	return n.host == host && n.tlb == tlb && len(code) >= maxInst && n.code == le.Uint64(code)
}

// cutOff reports whether an instruction goes on behind code.
func cutOff(code []byte) bool {
	var in inst
	return !decodeComplete(code, &in, mode64)
}

// splitTranslation is translation for an instruction that begins at the end of a page.
func (c *CPU) splitTranslation(at uint64, code []byte) uint32 {
	first := c.code
	ok := c.fetch((at | pageMask) + 1)
	next := c.code
	if c.code = first; !ok {
		c.forgetFailure()
		return 0
	}
	c.code.global = first.global && next.global
	return c.translator.translate(c.code.gpa>>12, code, unsafe.Slice((*byte)(next.host), maxInst), c.tlbNumber)
}

// forgetJumps empties the tables that lead from addresses to translations.
func (c *CPU) forgetJumps() { c.forgetJumpsIf(func(*jumpTable) bool { return true }) }

// forgetLocalJumps is forgetJumps but for what leads to global pages.
func (c *CPU) forgetLocalJumps() { c.forgetJumpsIf(func(j *jumpTable) bool { return j.local }) }

// forgetJumpsTo is forgetJumps for what may lead to a page.
func (c *CPU) forgetJumpsTo(vpn uint64) {
	c.forgetJumpsIf(func(j *jumpTable) bool { return j.mayLeadTo(vpn) })
}

// forgetJumpsIf empties the tables that are of a kind.
func (c *CPU) forgetJumpsIf(kind func(*jumpTable) bool) {
	if c.translator == nil {
		return
	}
	for i := range c.frame.jumps {
		if kind(&c.frame.jumps[i]) {
			c.frame.emptyJumps(i)
		}
	}
}

// forgetTranslations is for what they were made for and that has changed.
func (c *CPU) forgetTranslations() {
	if c.translator != nil {
		c.translator.reset()
		c.forgetJumps()
	}
}

// replace is for a block whose code the guest has changed: it leads to the new one, or to
// none until there is one.
func (t *translator) replace(n uint32) {
	old := &t.blocks[n]
	if b := t.table.find(t.blocks, old.host, old.next, int(old.tlb)); old.gone && b != 0 {
		t.b[old.entry] = 0xe9 // jmp
		t.land(int(old.entry)+1, int(t.blocks[b].entry))
	}
	old.gone = true
}

// trapInTranslated makes RIP that of the instruction whose translation has trapped.
func (c *CPU) trapInTranslated() {
	t, f := c.translator, c.frame
	at := uint32(f.TrapAt - t.region.Base)
	i := siteAt(t.traps, at)
	if i == len(t.traps) {
		panic(fmt.Sprintf("exception %d in translated code at %#x: %x", f.Trap-1, at, t.b[at&^15:][:64]))
	}
	f.r[rIP] = f.page + uint64(t.traps[i].offset)
}
