package devices

import (
	"encoding/binary"
	"fmt"
)

// Offsets in a configuration header of type 0 (PCI 3.0, 6.1).
const (
	pciVendor       = 0x00
	pciDevice       = 0x02
	pciCommand      = 0x04
	pciStatus       = 0x06
	pciRevision     = 0x08
	pciClass        = 0x09
	pciBAR          = 0x10
	pciSubsystem    = 0x2c
	pciCapabilities = 0x34
	pciIRQLine      = 0x3c
	pciIRQPin       = 0x3d

	pciHeaderEnd  = 0x40 // where capabilities begin
	pciConfigSize = 256  // of conventional PCI: nothing here needs more
)

// Bits of the command and status registers (6.2.2 and 6.2.3).
const (
	pciCommandMemory      = 1 << 1
	pciCommandMaster      = 1 << 2
	pciCommandINTxDisable = 1 << 10
	pciStatusINTx         = 1 << 3
	pciStatusCapabilities = 1 << 4
)

// PCIIdentity is what a function says it is.
type PCIIdentity struct {
	Vendor, Device, Subvendor, Subsystem uint16
	Class                                [3]byte // interface, subclass, base class
	Revision                             uint8
}

// PCIHeader is the configuration space of a function with one memory BAR, an
// interrupt pin and capabilities. The bus serializes the calls.
type PCIHeader struct {
	config  [pciConfigSize]byte
	mask    [pciConfigSize]byte // the bits that a guest can write
	next    int                 // where the next capability goes
	link    int                 // the byte that points to it
	barSize uint32
}

// NewPCIHeader makes a header; barSize, a power of two of at least 16, is the
// size of BAR 0, of 32-bit memory.
func NewPCIHeader(id PCIIdentity, barSize uint32) *PCIHeader {
	h := &PCIHeader{next: pciHeaderEnd, link: pciCapabilities, barSize: barSize}
	put := binary.LittleEndian.PutUint16
	put(h.config[pciVendor:], id.Vendor)
	put(h.config[pciDevice:], id.Device)
	put(h.config[pciSubsystem:], id.Subvendor)
	put(h.config[pciSubsystem+2:], id.Subsystem)
	put(h.config[pciStatus:], pciStatusCapabilities)
	h.config[pciRevision] = id.Revision
	copy(h.config[pciClass:], id.Class[:])
	h.config[pciIRQPin] = 1 // INTA
	put(h.mask[pciCommand:], pciCommandMemory|pciCommandMaster|pciCommandINTxDisable)
	h.mask[pciIRQLine] = 0xff
	binary.LittleEndian.PutUint32(h.mask[pciBAR:], ^(barSize - 1))
	return h
}

// AddCapability appends one: its ID, and what follows the two bytes of ID and
// link. mask tells which bits a guest can write; nil is none. It returns the
// capability's offset.
func (h *PCIHeader) AddCapability(id byte, body, mask []byte) int {
	at := h.next
	h.config[h.link] = byte(at)
	h.config[at], h.link = id, at+1
	copy(h.config[at+2:], body)
	copy(h.mask[at+2:], mask)
	h.next = (at + 2 + len(body) + 3) &^ 3
	return at
}

// Read fills data from the configuration space.
func (h *PCIHeader) Read(offset uint16, data []byte) {
	clear(data)
	if int(offset) < len(h.config) {
		copy(data, h.config[offset:])
	}
}

// Write changes what a guest can change.
func (h *PCIHeader) Write(offset uint16, data []byte) {
	for i, v := range data {
		if at := int(offset) + i; at < len(h.config) {
			h.config[at] = h.config[at]&^h.mask[at] | v&h.mask[at]
		}
	}
}

// Save returns the configuration space.
func (h *PCIHeader) Save() []byte { return append([]byte(nil), h.config[:]...) }

// Load takes a configuration space that Save returned, as far as a guest can
// write it: the rest must be the same.
func (h *PCIHeader) Load(config []byte) error {
	if len(config) != len(h.config) {
		return fmt.Errorf("a PCI configuration space of %d bytes", len(config))
	}
	for i, v := range config {
		if fixed := ^h.mask[i]; i != pciStatus && v&fixed != h.config[i]&fixed {
			return fmt.Errorf("the PCI configuration space is another device's, at %#x", i)
		}
	}
	h.Write(0, config)
	return nil
}

// Bytes are the configuration space from offset, for those who keep registers
// in it.
func (h *PCIHeader) Bytes(offset int) []byte { return h.config[offset:] }

// Window returns where BAR 0 is; ok is false while memory is not enabled.
func (h *PCIHeader) Window() (addr, size uint64, ok bool) {
	command := binary.LittleEndian.Uint16(h.config[pciCommand:])
	addr = uint64(binary.LittleEndian.Uint32(h.config[pciBAR:]))
	return addr, uint64(h.barSize), command&pciCommandMemory != 0 && addr != 0
}

// SetWindow puts BAR 0 somewhere, as firmware does.
func (h *PCIHeader) SetWindow(addr uint32) {
	binary.LittleEndian.PutUint32(h.config[pciBAR:], addr)
}

// SetIRQLine notes the interrupt, as firmware does.
func (h *PCIHeader) SetIRQLine(n uint8) { h.config[pciIRQLine] = n }

// INTxEnabled reports whether the function may use its pin.
func (h *PCIHeader) INTxEnabled() bool {
	return binary.LittleEndian.Uint16(h.config[pciCommand:])&pciCommandINTxDisable == 0
}

// SetINTxPending shows in the status register whether the pin is asserted.
func (h *PCIHeader) SetINTxPending(on bool) {
	h.config[pciStatus] &^= pciStatusINTx
	if on {
		h.config[pciStatus] |= pciStatusINTx
	}
}
