package ring0

import (
	"sync/atomic"
	"unsafe"

	"vmm/internal/x86"
)

const (
	pageSize = 4096
	pageMask = pageSize - 1

	tlbSize  = 4096
	itlbSize = 256

	largeShift = 21
	giantShift = 30
)

// Bits of a page fault's error code (SDM 3, 4.7).
const (
	pfPresent = 1 << 0
	pfWrite   = 1 << 1
	pfUser    = 1 << 2
	pfRsvd    = 1 << 3
	pfFetch   = 1 << 4
)

// Memory is the guest's RAM, and memory of devices.
type Memory interface {
	// Page returns the host's view of the guest-physical page that holds gpa,
	// or nil where there is no writable RAM.
	Page(gpa uint64) *[pageSize]byte
	// Mapped is Page for memory of devices, which has no page tables; with write,
	// for that which can be written to.
	Mapped(gpa uint64, write bool) *[pageSize]byte
	// Size returns an address above all RAM.
	Size() uint64
	// WritePage tells that the page that holds gpa is about to be written to: it
	// comes when a page becomes writable to an executor, not with every write.
	WritePage(gpa uint64)
}

// flushLocal forgets all translations of pages that are not global, as a write to CR3 does
// (SDM 3, 4.10.4.1).
func (c *CPU) flushLocal() {
	for i := range c.frame.tlbs {
		c.frame.tlbs[i].emptyLocal(i == tlbUser)
	}
	if !c.code.global {
		c.code = itlbEntry{}
	}
	c.forgetLocalJumps()
}

// FlushTLB forgets all translations.
func (c *CPU) FlushTLB() {
	for i := range c.frame.tlbs {
		c.frame.tlbs[i].empty()
	}
	c.code = itlbEntry{}
	c.forgetJumps()
}

// flushPage forgets one page's translation, and any made of a page number
// that shares its place; where the page may be a large one, all.
func (c *CPU) flushPage(addr uint64) {
	vpn := addr >> 12
	for i := range c.frame.tlbs {
		t := &c.frame.tlbs[i]
		if t.large[0].mayHave(addr>>largeShift) || t.large[1].mayHave(addr>>giantShift) {
			t.empty()
			c.forgetJumps()
		} else {
			t.forget(vpn)
		}
	}
	c.code = itlbEntry{}
	c.forgetJumpsTo(vpn)
}

func canonical(a uint64) bool { return uint64(int64(a<<16)>>16) == a }

// noPage is a failed walk's frame: not a page fault of the guest but an
// address that only KVM can deal with.
func (c *CPU) noPage() (uint64, bool) {
	c.fault.valid = false
	return 0, false
}

// walk translates a linear address as the CPU does (SDM 3, 4.5 and 4.6) and sets the
// accessed and dirty bits; c.global tells of the page. When it fails, c.fault reports whether the guest is to blame.
func (c *CPU) walk(addr uint64, access uint32) (gpa uint64, ok bool) {
	if c.sregs.CR0&x86.CR0PG == 0 {
		c.global = false
		return addr & 0xffffffff, true
	}
	if !canonical(addr) {
		c.notCanonical = true
		return c.noPage()
	}
	access |= c.userAccess
	// perm collects the write, user and no-execute bits over all levels.
	perm := uint64(x86.PTEWritable | x86.PTEUser)
	table := c.sregs.CR3 & x86.PTEFrame
	for shift := uint(39); ; shift -= 9 {
		page := c.tables.mem.Page(table)
		if page == nil {
			return c.noTable(addr, access)
		}
		p := (*uint64)(unsafe.Pointer(&page[addr>>shift&511*8]))
		pte := atomic.LoadUint64(p)
		if pte&x86.PTEPresent == 0 {
			return c.pageFault(addr, access)
		}
		perm = (perm & pte & (x86.PTEWritable | x86.PTEUser)) | (perm|pte)&x86.PTENX
		leaf := shift == 12 || pte&x86.PTELarge != 0 && shift <= 30
		if !leaf {
			if pte&x86.PTEAccessed == 0 {
				atomic.OrUint64(p, x86.PTEAccessed)
				c.wrote(table)
			}
			table = pte & x86.PTEFrame
			continue
		}
		if !c.permitted(perm, access) {
			return c.pageFault(addr, access|pfPresent)
		}
		set := uint64(x86.PTEAccessed)
		if access&pfWrite != 0 {
			set |= x86.PTEDirty
		}
		if pte&set != set {
			if !atomic.CompareAndSwapUint64(p, pte, pte|set) {
				return c.walk(addr, access) // somebody changed it meanwhile
			}
			c.wrote(table)
		}
		switch shift {
		case largeShift:
			c.tlb.large[0].add(addr >> largeShift)
		case giantShift:
			c.tlb.large[1].add(addr >> giantShift)
		}
		c.global = pte&x86.PTEGlobal != 0 && c.sregs.CR4&x86.CR4PGE != 0
		mask := uint64(1)<<shift - 1
		return pte&x86.PTEFrame&^mask | addr&mask, true
	}
}

func (c *CPU) permitted(perm uint64, access uint32) bool {
	user := access&pfUser != 0
	switch {
	case user && perm&x86.PTEUser == 0:
		return false
	case access&pfFetch != 0:
		return !(perm&x86.PTENX != 0 && c.sregs.EFER&x86.EFERNXE != 0) &&
			!(!user && perm&x86.PTEUser != 0 && c.sregs.CR4&x86.CR4SMEP != 0)
	case !user && perm&x86.PTEUser != 0 && c.noUser:
		return false
	case access&pfWrite != 0:
		return perm&x86.PTEWritable != 0 || !user && c.sregs.CR0&x86.CR0WP == 0
	}
	return true
}

func (c *CPU) pageFault(addr uint64, err uint32) (uint64, bool) {
	c.fault = pageFault{valid: true, addr: addr, err: err}
	return 0, false
}

// noTable is the failure of a walk whose table is where no memory is: there one reads ones,
// and so bits that must be 0.
func (c *CPU) noTable(addr uint64, access uint32) (uint64, bool) {
	if c.board == nil {
		return c.noPage()
	}
	return c.pageFault(addr, access|pfPresent|pfRsvd)
}

// forgetFailure is for who does without an access that has failed.
func (c *CPU) forgetFailure() {
	c.fault.valid, c.notCanonical, c.onDevice, c.exits = false, false, false, false
}

// wrote is for a page that is written to, or can be from now on.
func (c *CPU) wrote(gpa uint64) {
	c.tables.mem.WritePage(gpa)
	c.tables.endGuard(gpa)
}

// fill walks the page tables and remembers the result in the TLB. It returns
// the entry, or nil when the access must fail.
func (c *CPU) fill(addr uint64, access uint32) *tlbEntry {
	gpa, ok := c.walk(addr, access)
	if !ok {
		return nil
	}
	page := c.tables.mem.Page(gpa)
	if page == nil {
		page = c.tables.mem.Mapped(gpa, access&pfWrite != 0)
	}
	if page == nil {
		c.device, c.onDevice = gpa, true
		c.noPage()
		return nil
	}
	table := access&pfWrite != 0 && c.tables.isTable(gpa)
	if table && !c.bypass {
		c.fault.valid = false
		c.blocked = gpa
		return nil
	}
	if c.journal != nil && access&pfWrite != 0 {
		c.journal.note(unsafe.Pointer(page))
	}
	if access&pfWrite != 0 {
		c.wrote(gpa)
	}
	place := addr >> 12 % tlbSize
	c.tlb.filled = true
	e := &c.tlb.data[place]
	if c.inWatchedPage(addr) {
		c.touch(addr, access&pfWrite != 0)
		e = &c.lone
	} else if !c.global && c.tlb.locals < localSize {
		c.tlb.local[c.tlb.locals] = uint16(place)
		c.tlb.locals++
	}
	*e = tlbEntry{read: addr &^ pageMask, write: ^(addr &^ pageMask), host: unsafe.Pointer(page), gpa: gpa}
	if access&pfWrite != 0 && !table {
		e.write = e.read
	}
	if e != &c.lone && c.translator != nil && (c.global || c.tlbNumber == tlbUser) {
		c.tlb.second.add(e)
	}
	return e
}

// entry is where the TLB has the page of an address, or another one.
func (c *CPU) entry(addr uint64) *tlbEntry { return &c.tlb.data[addr>>12%tlbSize] }

// readable returns a pointer to n readable bytes at addr that lie in one page.
func (c *CPU) readable(addr uint64) unsafe.Pointer {
	e := c.entry(addr)
	if e.read != addr&^pageMask {
		if e = c.fill(addr, 0); e == nil {
			return nil
		}
	}
	return unsafe.Add(e.host, addr&pageMask)
}

// writable is readable for writing.
func (c *CPU) writable(addr uint64) unsafe.Pointer {
	e := c.entry(addr)
	if e.write != addr&^pageMask {
		if e = c.fill(addr, pfWrite); e == nil {
			return nil
		}
	}
	return unsafe.Add(e.host, addr&pageMask)
}

// load reads size bytes (1, 2, 4 or 8).
func (c *CPU) load(addr uint64, size uint8) (uint64, bool) {
	if addr&pageMask > pageSize-uint64(size) {
		return c.loadSplit(addr, size)
	}
	p := c.readable(addr)
	if p == nil {
		return c.loadDevice(size)
	}
	return loadHost(p, size), true
}

func loadHost(p unsafe.Pointer, size uint8) uint64 {
	switch size {
	case 8:
		return *(*uint64)(p)
	case 4:
		return uint64(*(*uint32)(p))
	case 2:
		return uint64(*(*uint16)(p))
	default:
		return uint64(*(*uint8)(p))
	}
}

func storeHost(p unsafe.Pointer, v uint64, size uint8) {
	switch size {
	case 8:
		*(*uint64)(p) = v
	case 4:
		*(*uint32)(p) = uint32(v)
	case 2:
		*(*uint16)(p) = uint16(v)
	default:
		*(*uint8)(p) = uint8(v)
	}
}

// store writes size bytes (1, 2, 4 or 8).
func (c *CPU) store(addr, v uint64, size uint8) bool {
	if addr&pageMask > pageSize-uint64(size) {
		return c.storeSplit(addr, v, size)
	}
	p := c.writable(addr)
	if p == nil {
		return c.storeDevice(v, size)
	}
	storeHost(p, v, size)
	return true
}

// loadSplit is load across a page boundary.
func (c *CPU) loadSplit(addr uint64, size uint8) (v uint64, ok bool) {
	var b [8]byte
	if !c.read(addr, b[:size]) {
		return 0, false
	}
	return loadHost(unsafe.Pointer(&b), 8), true
}

// storeSplit is store across a page boundary: both pages are checked first.
func (c *CPU) storeSplit(addr, v uint64, size uint8) bool {
	b := (*[8]byte)(unsafe.Pointer(&v))
	return c.write(addr, b[:size])
}

// read copies from guest memory, or from devices; it fails before anything is lost.
func (c *CPU) read(addr uint64, to []byte) bool {
	for len(to) > 0 {
		p := c.readable(addr)
		if p == nil {
			n := deviceChunk(addr, len(to))
			v, ok := c.loadDevice(n)
			if !ok {
				return false
			}
			copy(to[:n], unsafe.Slice((*byte)(unsafe.Pointer(&v)), n))
			to, addr = to[n:], addr+uint64(n)
			continue
		}
		n := copy(to, unsafe.Slice((*byte)(p), pageSize-addr&pageMask))
		to, addr = to[n:], addr+uint64(n)
	}
	return true
}

// write copies to guest memory, or to devices, all or nothing. Addresses go on at 0 after the
// last one.
func (c *CPU) write(addr uint64, from []byte) bool {
	for n := uint64(0); n < uint64(len(from)); n += pageSize - (addr+n)&pageMask {
		if c.writable(addr+n) == nil && !c.deviceThere() {
			return false
		}
	}
	for len(from) > 0 {
		p := c.writable(addr)
		if p == nil {
			n := deviceChunk(addr, len(from))
			var b [8]byte
			copy(b[:], from[:n])
			if !c.storeDevice(loadHost(unsafe.Pointer(&b), 8), n) {
				return false // or another CPU has unmapped it meanwhile
			}
			from, addr = from[n:], addr+uint64(n)
			continue
		}
		n := copy(unsafe.Slice((*byte)(p), pageSize-addr&pageMask), from)
		from, addr = from[n:], addr+uint64(n)
	}
	return true
}

// cas is a compare-and-swap of size bytes that do not cross a page. It is
// atomic where they do not cross eight bytes either.
func cas(p unsafe.Pointer, old, v uint64, size uint8) bool {
	if size == 8 && uintptr(p)&7 == 0 {
		return atomic.CompareAndSwapUint64((*uint64)(p), old, v)
	}
	word := unsafe.Pointer(uintptr(p) &^ 7)
	shift := (uintptr(p) & 7) * 8
	mask := sizeMask(size) << shift
	for {
		w := atomic.LoadUint64((*uint64)(word))
		if w&mask>>shift != old {
			return false
		}
		if atomic.CompareAndSwapUint64((*uint64)(word), w, w&^mask|v<<shift&mask) {
			return true
		}
	}
}

// lockable reports whether a locked access can be atomic here; else KVM does it.
func lockable(addr uint64, size uint8) bool { return addr&7+uint64(size) <= 8 }

func sizeMask(size uint8) uint64 { return ^uint64(0) >> (64 - 8*uint(size)) }

// fetch makes c.code the page of the instruction at addr.
func (c *CPU) fetch(addr uint64) bool {
	vpn := addr >> 12
	e := &c.tlb.code[vpn%itlbSize]
	if e.tag != vpn+1 {
		gpa, ok := c.walk(addr, pfFetch)
		if !ok {
			return false
		}
		page := c.tables.mem.Page(gpa)
		if page == nil && c.board != nil { // code of a disk that is memory
			page = c.tables.mem.Mapped(gpa, false)
		}
		if page == nil {
			return false
		}
		c.tlb.localCode = c.tlb.localCode || !c.global
		c.tlb.filled = true
		*e = itlbEntry{tag: vpn + 1, gpa: gpa &^ pageMask, host: unsafe.Pointer(page), global: c.global}
	}
	c.code = *e
	return true
}

// codeAt is the code from an address in the page of c.code on, to the end of that.
func (c *CPU) codeAt(at uint64) []byte {
	off := at & pageMask
	return unsafe.Slice((*byte)(unsafe.Add(c.code.host, off)), pageSize-off)
}
