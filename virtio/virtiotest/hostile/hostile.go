// Package hostile is a driver that does to a virtio device what no driver does, beside
// just enough of what one does to get anywhere. The tests of the devices drive them with
// it in this process, and a guest of theirs that has no operating system (tests/hostileguest)
// does from inside of a VM. So nothing here takes memory from the heap, starts a
// goroutine, or needs a package to be initialized.
package hostile

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync/atomic"
)

// The layout of a target's memory, from its beginning.
const (
	MemorySize = 16 << 20
	ringSpace  = 1 << 15 // of a queue: descriptors, rings and indirect tables
	availAt    = 0x2000
	usedAt     = 0x3000
	tableAt    = 0x4000
	hugeTables = 0xf0000 // one for each attacker
	hugeTable  = 0x2000
	dataAt     = 1 << 20
	hugePart   = MemorySize - 2*dataAt     // of a chain that describes memory many times
	mostParts  = (1<<32 + 4096) / hugePart // of a chain: more are refused (2.7.5.1)

	// MaxQueues is of how many queues a device has those that are attacked.
	MaxQueues = hugeTables / ringSpace
	// MaxAttackers is how many may attack a target at once.
	MaxAttackers = (dataAt - hugeTables) / hugeTable
)

// Bus is how a driver reaches its device. Its methods may be used concurrently.
type Bus interface {
	// Write and Read access n bytes (1, 2, 4 or 8) at an offset of the registers: the
	// BAR's or the MMIO window's.
	Write(at, v uint64, n int)
	Read(at uint64, n int) uint64
	// WriteConfig and ReadConfig access 1, 2 or 4 bytes of PCI configuration space.
	WriteConfig(at uint64, v uint32, n int)
	ReadConfig(at uint64, n int) uint32
	// Kick notifies queues past the registers, where there is such a way.
	Kick(r *rand.Rand)
	// Yield lets the device go on.
	Yield()
}

// Target is a device under attack; several may attack it.
type Target struct {
	Bus Bus
	// PCI tells PCI's registers from those of MMIO.
	PCI bool
	// BAR is where the BAR belongs, and Elsewhere where else it may be moved for a while.
	BAR       uint32
	Elsewhere []uint32
	// Memory has MemorySize bytes, at the guest-physical address Base.
	Memory []byte
	Base   uint64
	// Sizes are those of the device's queues, MaxQueues at most.
	Sizes []uint16
	// Request fills the beginning of a request with what looks like one, and returns how
	// long that is, or 0 if it may be of any length.
	Request func(r *rand.Rand, b []byte) int

	// Answers is how many chains the device is seen to have used.
	Answers atomic.Uint64

	chains atomic.Uint64
	used   [MaxQueues]atomic.Uint32
}

// Attacker is one CPU's part of the driver. The target may be changed in between.
type Attacker struct {
	*Target
	ID   uint64 // less than MaxAttackers
	Rand *rand.Rand
}

// Sizes are numbers at which something may end.
var Sizes = []uint64{0, 1, 2, 3, 7, 16, 40, 80, 4095, 4096, 65536, 1 << 20, 1<<20 + 4097, 1 << 29, 3 << 30, math.MaxUint32, 1 << 62, math.MaxInt64, math.MaxUint64}

// Pick returns one of several.
func Pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// Do does one thing to the device.
func (a *Attacker) Do() {
	switch n := a.Rand.IntN(100); {
	case n < 70:
		a.submit()
	case n < 80:
		a.Bus.Kick(a.Rand)
	case n < 81:
		a.again()
	case n < 83:
		a.queueReset()
	case n < 84:
		a.scribble()
	case n < 92:
		a.anyRegister()
	default:
		a.move()
	}
}

// registers are those that both transports have, by what they set.
type registers struct {
	featureSel, feature, offeredSel, offered, status, queueSel, queueSize, enable, reset, desc, avail, used uint64
	config, notify, notifyStep, size                                                                        uint64
}

var (
	pciRegisters = registers{featureSel: 0x08, feature: 0x0c, offeredSel: 0x00, offered: 0x04, status: 0x14, queueSel: 0x16, queueSize: 0x18, enable: 0x1c, reset: 0x3a,
		desc: 0x20, avail: 0x28, used: 0x30, config: 0x2000, notify: 0x3000, notifyStep: 4, size: 0x8000}
	mmioRegisters = registers{featureSel: 0x24, feature: 0x20, offeredSel: 0x14, offered: 0x10, status: 0x70, queueSel: 0x30, queueSize: 0x38, enable: 0x44, reset: 0xc0,
		desc: 0x80, avail: 0x90, used: 0xa0, config: 0x100, notify: 0x50, size: 0x200}
)

const msixTable = 0x4000 // of the BAR

func (t *Target) regs() *registers {
	if t.PCI {
		return &pciRegisters
	}
	return &mmioRegisters
}

// set writes to a register, in as many bytes as a driver does: MMIO wants four.
func (t *Target) set(at, v uint64, n int) {
	if !t.PCI {
		n = 4
	}
	t.Bus.Write(at, v, n)
}

// Bits of the device status (2.1), and of a descriptor's flags (2.7.5).
const (
	acknowledge = 1
	driver      = 2
	driverOK    = 4
	featuresOK  = 8
	running     = acknowledge | driver | driverOK | featuresOK

	hasNext  = 1
	writable = 2
	indirect = 4
)

func (t *Target) status(v uint64) { t.set(t.regs().status, v, 1) }

// works reports whether the device says that it is set up.
func (t *Target) works() bool {
	n := 4
	if t.PCI {
		n = 1
	}
	return byte(t.Bus.Read(t.regs().status, n)) == running
}

// again resets the device, and mostly starts it again.
func (a *Attacker) again() {
	a.status(0)
	if a.Rand.IntN(4) > 0 {
		a.start()
	}
}

// start does what a driver does to start a device, but for what goes wrong.
func (a *Attacker) start() {
	g := a.regs()
	a.status(0)
	for sel := range uint64(2) {
		a.set(g.featureSel, sel, 4)
		a.set(g.feature, a.features(sel), 4)
	}
	a.status(acknowledge | driver | featuresOK)
	for i := range a.Sizes {
		if a.Rand.IntN(8) > 0 {
			a.enable(i)
		}
	}
	if a.PCI && a.Rand.IntN(2) == 0 {
		a.messages()
	}
	a.status(running)
}

// features are 32 of those that the driver takes: some of the device's, seldom others.
func (a *Attacker) features(sel uint64) uint64 {
	if a.Rand.IntN(50) == 0 {
		return uint64(a.Rand.Uint32())
	}
	g := a.regs()
	a.set(g.offeredSel, sel, 4)
	v := a.Bus.Read(g.offered, 4)
	if a.Rand.IntN(4) == 0 {
		v &= uint64(a.Rand.Uint32())
	}
	if sel == 1 {
		v |= 1 // VIRTIO_F_VERSION_1
	}
	return v
}

// enable sets a queue up.
func (a *Attacker) enable(i int) {
	g, base := a.regs(), a.ring(i)
	clear(a.Memory[base : base+tableAt])
	a.set(g.queueSel, uint64(i), 2)
	size, at := a.queueSize(i), [3]uint64{a.Base + base, a.Base + base + availAt, a.Base + base + usedAt}
	switch n := a.Rand.IntN(600); {
	case n < 3:
		size, at[0] = Pick(a.Rand, Sizes), Pick(a.Rand, Sizes)
	case n < 6: // one of them anywhere, also at the end of all addresses
		at[n-3] = a.Base + MemorySize - Pick(a.Rand, Sizes)
	case n < 9: // over each other
		at[1], at[2] = at[0]+a.Rand.Uint64N(64), at[n-6]
	}
	a.set(g.queueSize, size, 2)
	for k, reg := range [3]uint64{g.desc, g.avail, g.used} {
		a.set(reg, at[k]&0xffffffff, 4)
		a.set(reg+4, at[k]>>32, 4)
	}
	if a.PCI {
		a.set(0x1a, a.Rand.Uint64N(4), 2) // its vector
	}
	a.set(g.enable, 1, 2)
}

// ring is where a queue's memory begins.
func (a *Attacker) ring(i int) uint64 { return uint64(i%MaxQueues) * ringSpace }

// queueSize is what the driver makes of queue i, most of the time.
func (a *Attacker) queueSize(i int) uint64 { return uint64(min(a.Sizes[i], 64)) }

// queueReset resets a queue, by the ways that there are, and starts it again.
func (a *Attacker) queueReset() {
	g, i := a.regs(), a.Rand.IntN(len(a.Sizes))
	a.set(g.queueSel, uint64(i), 2)
	if a.Rand.IntN(2) == 0 {
		a.set(g.reset, 1, 2)
	} else {
		a.set(g.enable, 0, 2)
	}
	if a.Rand.IntN(4) > 0 {
		a.enable(i)
	}
}

// messages enables MSI-X, with vectors that may be masked.
func (a *Attacker) messages() {
	for i := range uint64(4) {
		if a.Rand.IntN(4) == 0 { // any message to any CPU, which seldom is no plain interrupt, or one to nowhere
			at, v := uint64(0xfee00000|a.Rand.Uint32N(1<<20)), uint64(a.Rand.Uint32())
			if a.Rand.IntN(1000) > 0 {
				v = v&^0x700 | 0x20
			}
			if a.Rand.IntN(20) == 0 {
				at = Pick(a.Rand, Sizes)
			}
			a.set(msixTable+16*i, at&0xffffffff, 4)
			a.set(msixTable+16*i+4, at>>32, 4)
			a.set(msixTable+16*i+8, v, 4)
		}
		a.set(msixTable+16*i+12, a.Rand.Uint64N(2), 4)
	}
	a.Bus.WriteConfig(a.capability(0x11)+2, a.Rand.Uint32(), 2)
}

// capability is where one of the PCI function's is.
func (a *Attacker) capability(id byte) uint64 {
	at := uint64(0x34)
	for range 48 {
		at = uint64(byte(a.Bus.ReadConfig(at, 1)))
		if at == 0 || at > 0xfe {
			break
		}
		if byte(a.Bus.ReadConfig(at, 1)) == id {
			return at
		}
		at++
	}
	return 0x40
}

// move moves the BAR, switches the function's memory off and on, or writes anything to
// the configuration spaces, PCI's and the device's.
func (a *Attacker) move() {
	if !a.PCI || a.Rand.IntN(3) == 0 {
		a.Bus.Write(a.regs().config+a.Rand.Uint64N(64), a.Rand.Uint64(), 1<<a.Rand.IntN(4))
		return
	}
	switch a.Rand.IntN(4) {
	case 0:
		a.Bus.WriteConfig(0x10, Pick(a.Rand, a.Elsewhere), 4)
	case 1:
		a.Bus.WriteConfig(4, a.Rand.Uint32N(8), 2)
	case 2:
		a.Bus.WriteConfig(a.Rand.Uint64N(256), a.Rand.Uint32(), 1<<a.Rand.IntN(3))
	case 3:
		a.messages()
	}
	if a.Rand.IntN(4) > 0 {
		a.place()
	}
}

// place puts the BAR where it belongs and switches it on.
func (a *Attacker) place() {
	a.Bus.WriteConfig(0x10, a.BAR, 4)
	a.Bus.WriteConfig(4, 6, 2)
}

// anyRegister reads or writes anywhere.
func (a *Attacker) anyRegister() {
	at, n := a.Rand.Uint64N(a.regs().size), 1<<a.Rand.IntN(4)
	if a.Rand.IntN(2) == 0 {
		at = a.Rand.Uint64N(0x100)
	}
	if a.Rand.IntN(2) == 0 {
		a.Bus.Read(at, n)
		return
	}
	a.Bus.Write(at, Pick(a.Rand, Sizes), n)
}

// scribble writes over rings, tables and requests.
func (a *Attacker) scribble() {
	at := a.Rand.IntN(len(a.Sizes) * ringSpace)
	for range a.Rand.IntN(64) {
		a.Memory[at%len(a.Memory)] = byte(a.Rand.Uint32())
		at += a.Rand.IntN(16)
	}
}

// submit makes a chain available and notifies the device.
func (a *Attacker) submit() {
	i := a.Rand.IntN(len(a.Sizes))
	base, size := a.ring(i), a.queueSize(i)
	ring := a.Memory[base : base+ringSpace]
	le := binary.LittleEndian
	if !a.works() {
		if a.Rand.IntN(3) == 0 {
			a.start() // it waits for that
		}
		return
	}
	used := le.Uint16(ring[usedAt+2:])
	if n := used - uint16(a.used[i].Swap(uint32(used))); uint64(n) <= size {
		a.Answers.Add(uint64(n))
	}
	if le.Uint16(ring[availAt+2:])-used >= uint16(size/8) && a.Rand.IntN(500) > 0 {
		a.Bus.Yield() // the device is not as fast
		return
	}
	// Chains that are under way together mostly have descriptors of their own.
	head := (a.chains.Add(1)*4 - a.Rand.Uint64N(40)/39) % max(size, 1)
	at, most, huge := base, size, a.Rand.IntN(6) == 0
	byTable := huge || a.Rand.IntN(3) == 0
	switch {
	case huge:
		at, most = hugeTables+a.ID*hugeTable, hugeTable/16
	case byTable:
		at, most = base+tableAt+head*256, 16
	}
	table, length := a.Memory[at:], min(1+a.Rand.Uint64N(4), most)
	if huge {
		length = 1 + a.Rand.Uint64N(mostParts)
	}
	readable := min(length, 1+a.Rand.Uint64N(2))
	switch {
	case huge && a.Rand.IntN(4) > 0:
		readable = 1
	case a.Rand.IntN(40) == 0 || a.receives(i):
		readable = a.Rand.Uint64N(length + 1)
	}
	k0 := head
	if byTable {
		k0 = 0
	}
	request := dataAt + a.Rand.Uint64N(64)<<12
	whole := uint64(a.Request(a.Rand, a.Memory[request:request+256]))
	if whole == 0 || a.Rand.IntN(4) == 0 {
		whole = Pick(a.Rand, requestSizes)
	} else if length > 1 {
		readable = min(readable, 1)
	}
	for k := range length {
		flags, next := uint16(0), (k0+k+1)%most
		if k >= readable {
			flags = writable
		}
		if k+1 < length || a.Rand.IntN(1000) == 0 {
			flags |= hasNext
		}
		if a.Rand.IntN(2000) == 0 {
			flags |= indirect
		}
		addr, n := a.part(huge)
		if k == 0 && readable > 0 {
			addr, n = a.Base+request, whole
		}
		put(table[16*((k0+k)%most):], addr, n, flags, uint16(next))
	}
	if byTable {
		put(ring[16*head:], a.Base+at, 16*length, indirect, 0)
	}
	avail := ring[availAt:]
	idx := le.Uint16(avail[2:])
	le.PutUint16(avail[4+2*(uint64(idx)%max(size, 1)):], uint16(head))
	le.PutUint16(avail[2:], idx+1)
	a.Notify(i)
}

// Notify notifies a queue, which need not be one.
func (t *Target) Notify(queue int) {
	g := t.regs()
	t.set(g.notify+g.notifyStep*uint64(queue), uint64(queue), 2)
}

// MaxQueueSize is the size that the device offers for a queue, 0 where it has none.
func (t *Target) MaxQueueSize(queue int) uint16 {
	g := t.regs()
	t.set(g.queueSel, uint64(queue), 2)
	if t.PCI {
		return uint16(t.Bus.Read(g.queueSize, 2))
	}
	return uint16(t.Bus.Read(0x34, 4)) // QueueNumMax
}

var (
	requestSizes = []uint64{40, 44, 48, 80, 256, 256}
	partSizes    = []uint64{1, 4, 8, 16, 40, 512, 4096, 64 << 10}
)

// put writes a descriptor.
func put(d []byte, addr, n uint64, flags, next uint16) {
	le := binary.LittleEndian
	le.PutUint64(d, addr)
	le.PutUint32(d[8:], uint32(n))
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
}

// receives tells whether a queue may be one for what the device writes.
func (a *Attacker) receives(i int) bool { return len(a.Sizes) > 2 && i%2 == 0 }

// part is a piece of memory for a descriptor; seldom it is none, or the queues' own rings.
func (a *Attacker) part(huge bool) (addr, n uint64) {
	if !huge {
		switch a.Rand.IntN(4000) {
		case 0:
			return Pick(a.Rand, Sizes), Pick(a.Rand, Sizes)
		case 1:
			return a.Base + MemorySize - a.Rand.Uint64N(8), Pick(a.Rand, Sizes)
		case 2, 3:
			return a.Base + a.Rand.Uint64N(uint64(len(a.Sizes))*ringSpace), Pick(a.Rand, partSizes)
		}
	}
	if n = Pick(a.Rand, partSizes); huge {
		n = hugePart
	}
	return a.Base + dataAt + a.Rand.Uint64N(MemorySize-dataAt-n+1), n
}
