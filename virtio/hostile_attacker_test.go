package virtio_test

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
)

// attacker is a vCPU of the hostile driver.
type attacker struct {
	*hostile
	id uint64
	r  *rand.Rand
}

// do does one thing to the device.
func (a *attacker) do() {
	switch n := a.r.IntN(100); {
	case n < 70:
		a.submit()
	case n < 80:
		a.kick(a.r)
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

// Registers that both transports have, by what they set.
type registers struct{ featureSel, feature, status, queueSel, queueSize, enable, reset, desc, avail, used, notify, size uint64 }

var (
	pciRegisters  = registers{0x08, 0x0c, 0x14, 0x16, 0x18, 0x1c, 0x3a, 0x20, 0x28, 0x30, 0x3000, 0x8000}
	mmioRegisters = registers{0x24, 0x20, 0x70, 0x30, 0x38, 0x44, 0xc0, 0x80, 0x90, 0xa0, 0x50, 0x200}
)

func (a *attacker) regs() *registers {
	if a.bus != nil {
		return &pciRegisters
	}
	return &mmioRegisters
}

// set writes to a register, in as many bytes as a driver does: MMIO wants four.
func (a *attacker) set(at, v uint64, n int) {
	if a.bus == nil {
		n = 4
	}
	a.reg(at, v, n)
}

// statusSize is in how many bytes the status is read.
func (a *attacker) statusSize() int {
	if a.bus == nil {
		return 4
	}
	return 1
}

func (a *attacker) status(v uint64) { a.set(a.regs().status, v, 1) }

// again resets the device, and mostly starts it again.
func (a *attacker) again() {
	a.status(0)
	if a.r.IntN(4) > 0 {
		a.start()
	}
}

// start does what a driver does to start a device, but for what goes wrong.
func (a *attacker) start() {
	g := a.regs()
	a.status(0)
	for sel := range uint64(2) {
		a.set(g.featureSel, sel, 4)
		a.set(g.feature, a.features(sel), 4)
	}
	a.status(1 | 2 | 8)
	for i := range a.sizes {
		if a.r.IntN(8) > 0 {
			a.enable(i)
		}
	}
	if a.bus != nil && a.r.IntN(2) == 0 {
		a.messages()
	}
	a.status(1 | 2 | 8 | 4)
}

// features are 32 of those that the driver takes: some of the device's, seldom others.
func (a *attacker) features(sel uint64) uint64 {
	if a.r.IntN(50) == 0 {
		return uint64(a.r.Uint32())
	}
	offered, at := uint64(0x00), uint64(0x04)
	if a.bus == nil {
		offered, at = 0x14, 0x10
	}
	a.set(offered, sel, 4)
	var b [4]byte
	a.read(at, b[:])
	v := uint64(binary.LittleEndian.Uint32(b[:]))
	if a.r.IntN(4) == 0 {
		v &= uint64(a.r.Uint32())
	}
	if sel == 1 {
		v |= 1 // VIRTIO_F_VERSION_1
	}
	return v
}

// enable sets a queue up.
func (a *attacker) enable(i int) {
	g, base := a.regs(), a.base(i)
	clear(a.mem.Bytes[base : base+tableAt])
	a.set(g.queueSel, uint64(i), 2)
	size, desc := a.queueSize(i), base
	if a.r.IntN(200) == 0 {
		size, desc = pick(a.r, sizes), pick(a.r, sizes)
	}
	a.set(g.queueSize, size, 2)
	for reg, v := range map[uint64]uint64{g.desc: desc, g.avail: base + availAt, g.used: base + usedAt} {
		a.set(reg, v&0xffffffff, 4)
		a.set(reg+4, v>>32, 4)
	}
	if a.bus != nil {
		a.set(0x1a, a.r.Uint64N(4), 2) // its vector
	}
	a.set(g.enable, 1, 2)
}

func (a *attacker) base(i int) uint64 { return uint64(i%mostQueues) * ringSpace }

// queueSize is what the driver makes of queue i, most of the time.
func (a *attacker) queueSize(i int) uint64 { return uint64(min(a.sizes[i], 64)) }

// queueReset resets a queue, by the ways that there are, and starts it again.
func (a *attacker) queueReset() {
	g, i := a.regs(), a.r.IntN(len(a.sizes))
	a.set(g.queueSel, uint64(i), 2)
	if a.r.IntN(2) == 0 {
		a.set(g.reset, 1, 2)
	} else {
		a.set(g.enable, 0, 2)
	}
	if a.r.IntN(4) > 0 {
		a.enable(i)
	}
}

// messages enables MSI-X, with vectors that may be masked.
func (a *attacker) messages() {
	for i := range uint64(4) {
		a.reg(0x4000+16*i+12, a.r.Uint64N(2), 4)
	}
	a.config(a.capability(0x11)+2, a.r.Uint32(), 2)
}

// capability is where one of the PCI function's is.
func (a *attacker) capability(id byte) uint64 {
	b := []byte{0x34, 0x34}
	a.bus.Read(1<<15+0x34, b[1:])
	for n := 0; b[1] != 0 && n < 48; n++ {
		at := uint64(b[1])
		if a.bus.Read(1<<15+at, b); b[0] == id {
			return at
		}
	}
	return 0x40
}

// move moves the BAR, switches the function's memory off and on, or writes anything to
// the configuration spaces, PCI's and the device's.
func (a *attacker) move() {
	if a.bus == nil || a.r.IntN(3) == 0 {
		at := uint64(0x100)
		if a.bus != nil {
			at = 0x2000
		}
		a.reg(at+a.r.Uint64N(64), a.r.Uint64(), 1<<a.r.IntN(4))
		return
	}
	switch a.r.IntN(4) {
	case 0:
		a.config(0x10, pick(a.r, []uint32{0, 0xffffffff, barAt, barAt + 0x10000, mmioAt}), 4)
	case 1:
		a.config(4, a.r.Uint32N(8), 2)
	case 2:
		a.config(a.r.Uint64N(256), a.r.Uint32(), 1<<a.r.IntN(3))
	case 3:
		a.messages()
	}
	if a.r.IntN(4) > 0 {
		a.config(0x10, barAt, 4)
		a.config(4, 6, 2)
	}
}

// anyRegister reads or writes anywhere.
func (a *attacker) anyRegister() {
	at, b := a.r.Uint64N(a.regs().size), make([]byte, 1<<a.r.IntN(4))
	if a.r.IntN(2) == 0 {
		at = a.r.Uint64N(0x100)
	}
	if a.r.IntN(2) == 0 {
		a.read(at, b)
		return
	}
	binary.LittleEndian.PutUint64(append(b, make([]byte, 8)...)[:8], pick(a.r, sizes))
	a.write(at, b)
}

// scribble writes over rings, tables and requests.
func (a *attacker) scribble() {
	at := a.r.IntN(len(a.sizes) * ringSpace)
	for range a.r.IntN(64) {
		a.mem.Bytes[at%len(a.mem.Bytes)] = byte(a.r.Uint32())
		at += a.r.IntN(16)
	}
}

// submit makes a chain available and notifies the device.
func (a *attacker) submit() {
	i := a.r.IntN(len(a.sizes))
	base, size := a.base(i), a.queueSize(i)
	ring := a.mem.Bytes[base : base+ringSpace]
	le := binary.LittleEndian
	var status [4]byte
	if a.read(a.regs().status, status[:a.statusSize()]); status[0] != 1|2|8|4 {
		if a.r.IntN(3) == 0 {
			a.start() // it waits for that
		}
		return
	}
	if le.Uint16(ring[availAt+2:])-le.Uint16(ring[usedAt+2:]) >= uint16(size/8) && a.r.IntN(500) > 0 {
		runtime.Gosched() // the device is not as fast
		return
	}
	// Chains that are under way together mostly have descriptors of their own.
	head := (a.chains.Add(1)*4 - a.r.Uint64N(40)/39) % size
	at, most, huge := base, size, a.r.IntN(6) == 0
	indirect := huge || a.r.IntN(3) == 0
	switch {
	case huge:
		at, most = hugeTables+a.id*hugeTable, hugeTable/16
	case indirect:
		at, most = base+tableAt+head*256, 16
	}
	table, length := a.mem.Bytes[at:], min(1+a.r.Uint64N(4), most)
	if huge {
		length = 1 + a.r.Uint64N(mostParts)
	}
	readable := min(length, 1+a.r.Uint64N(2))
	switch {
	case huge && a.r.IntN(4) > 0:
		readable = 1
	case a.r.IntN(40) == 0 || a.receives(i):
		readable = a.r.Uint64N(length + 1)
	}
	k0 := head
	if indirect {
		k0 = 0
	}
	request := dataAt + a.r.Uint64N(64)<<12
	a.request(a.r, a.mem.Bytes[request:request+256])
	for k := range length {
		flags, next := uint16(0), (k0+k+1)%most
		if k >= readable {
			flags = 2
		}
		if k+1 < length || a.r.IntN(1000) == 0 {
			flags |= 1
		}
		addr, n := a.part(huge)
		if k == 0 && readable > 0 {
			addr, n = request, pick(a.r, []uint64{40, 44, 48, 80, 256, 256})
		}
		put(table[16*((k0+k)%most):], addr, n, flags, uint16(next))
	}
	if indirect {
		put(ring[16*head:], at, 16*length, 4, 0)
	}
	avail := ring[availAt:]
	idx := le.Uint16(avail[2:])
	le.PutUint16(avail[4+2*(uint64(idx)%size):], uint16(head))
	le.PutUint16(avail[2:], idx+1)
	if a.bus == nil {
		a.set(a.regs().notify, uint64(i), 4)
	} else {
		a.set(a.regs().notify+4*uint64(i), uint64(i), 2)
	}
}

// put writes a descriptor.
func put(d []byte, addr, n uint64, flags, next uint16) {
	le := binary.LittleEndian
	le.PutUint64(d, addr)
	le.PutUint32(d[8:], uint32(n))
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
}

// receives tells whether a queue may be one for what the device writes.
func (a *attacker) receives(i int) bool { return len(a.sizes) > 2 && i%2 == 0 }

// part is a piece of memory for a descriptor.
func (a *attacker) part(huge bool) (addr, n uint64) {
	if !huge && a.r.IntN(4000) == 0 {
		return pick(a.r, sizes), pick(a.r, sizes)
	}
	if n = pick(a.r, []uint64{1, 4, 8, 16, 40, 512, 4096, 64 << 10}); huge {
		n = hugePart
	}
	return dataAt + a.r.Uint64N(hostileRAM-dataAt-n+1), n
}
