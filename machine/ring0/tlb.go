package ring0

import "unsafe"

const localSize = 256

// tlb holds the translations of one privilege.
type tlb struct {
	data [tlbSize]tlbEntry
	code [itlbSize]itlbEntry
	// local are the places, in data, of what is not global, as many as there is room for:
	// another CR3 makes only those void.
	local     [localSize]uint16
	locals    uint64
	localCode bool // some of code is not global
	// large tells in which regions of 2 MiB and of 1 GiB there may be parts of a large page:
	// all goes when one of its addresses is invalidated.
	large  [2]regions
	second secondTLB
	// filled is whether anything was added: what is empty is large, and not written to be so again.
	filled bool
}

// tlbEntry maps one linear page, whose address is in read, and in write where it can be
// written to. An address that belongs into another place of the table matches nothing: 0
// in all entries but the first, and elsewhere in that.
type tlbEntry struct {
	read, write uint64
	host        unsafe.Pointer
	gpa         uint64 // of the page
}

// clear makes an entry, of a place in its table, match nothing.
func (e *tlbEntry) clear(place uint64) {
	if *e = (tlbEntry{}); place == 0 {
		e.read, e.write = elsewhere, elsewhere
	}
}

// elsewhere is an address that does not belong into the first entry of a table.
const elsewhere = pageSize

// empty forgets all translations.
func (t *tlb) empty() {
	t.data[0].clear(0)
	t.second.empty()
	if !t.filled {
		return
	}
	clear(t.data[1:])
	clear(t.code[:])
	t.locals, t.localCode, t.large = 0, false, [2]regions{}
	t.filled = false
}

// emptyLocal forgets the translations of all pages that are not global; user says that the TLB is
// user mode's.
func (t *tlb) emptyLocal(user bool) {
	if t.locals == localSize {
		clear(t.data[:])
		t.data[0].clear(0)
	} else {
		for _, place := range t.local[:t.locals] {
			t.data[place].clear(uint64(place))
		}
	}
	t.locals = 0
	if t.localCode { // as all of user mode's is
		clear(t.code[:])
		t.localCode = false
	}
	if user { // what else is in a second one is global
		t.second.empty()
	}
}

// forget forgets the translations in the place of a page.
func (t *tlb) forget(vpn uint64) {
	place := vpn % tlbSize
	t.data[place].clear(place)
	t.second.entries[secondPlace(vpn)] = tlbEntry{}
	t.code[vpn%itlbSize] = itlbEntry{}
}

// regions is a set of regions by their numbers. One that is not in it seems to be now and then: a
// kernel has all memory in large pages, and invalidates small ones elsewhere all the time.
type regions [1 << (regionBits - 6)]uint64

const regionBits = 13

func regionPlace(number uint64) (word uint32, bit uint64) {
	mixed := uint32(number) * secondHash // which alone has neighbours meet those of others all at once
	place := (mixed ^ mixed>>15) * secondHash >> (32 - regionBits)
	return place >> 6, 1 << (place & 63)
}

func (r *regions) add(number uint64) {
	word, bit := regionPlace(number)
	r[word] |= bit
}

func (r *regions) mayHave(number uint64) bool {
	word, bit := regionPlace(number)
	return r[word]&bit != 0
}

// secondTLB has what the TLB in front of it has lost: programs are larger than that reaches, and
// have much at the same distance from powers of two. Only translated code looks into it. It holds
// what is global, user mode's all.
type secondTLB struct {
	entries [secondSize]tlbEntry
	// epoch is in the lower bits of what entries match now; others are void.
	epoch uint64
}

const (
	secondBits = 14
	secondSize = 1 << secondBits
	secondHash = 0x9e3779b1
	// maxEpoch is so small that what does not match, whose lower bits are all inverted, never does.
	maxEpoch = pageMask >> 1
)

// secondPlace is the place of a page by its number.
func secondPlace(vpn uint64) uint32 { return uint32(vpn) * secondHash >> (32 - secondBits) }

// empty forgets all.
func (s *secondTLB) empty() {
	if s.epoch++; s.epoch > maxEpoch {
		clear(s.entries[:])
		s.epoch = 1
	}
}

// add adds an entry of the TLB in front.
func (s *secondTLB) add(e *tlbEntry) {
	s.entries[secondPlace(e.read>>12)] = tlbEntry{read: e.read ^ s.epoch, write: e.write ^ s.epoch, host: e.host, gpa: e.gpa}
}

// itlbEntry maps one linear page for execution.
type itlbEntry struct {
	tag  uint64
	gpa  uint64
	host unsafe.Pointer

	global bool
}
