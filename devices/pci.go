package devices

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// PCIFunction is one function on the PCI bus. Calls of its configuration space
// are serialized by the bus; offset and len(data) stay within 256 bytes.
type PCIFunction interface {
	ConfigRead(offset uint16, data []byte)
	ConfigWrite(offset uint16, data []byte)
}

// PCIMemory is a function that has memory behind BAR 0. Calls of BARRead and
// BARWrite come from all vCPUs at once.
type PCIMemory interface {
	PCIFunction
	// Window is where BAR 0 is now; ok is false while it is nowhere.
	Window() (addr, size uint64, ok bool)
	BARRead(offset uint64, data []byte)
	BARWrite(offset uint64, data []byte)
}

// PCI is a PCI Express root bus: bus 0, with one function per device number,
// reached by ECAM (PCI Express 5.0, 7.2.2) and by the ports 0xcf8 and 0xcfc.
type PCI struct {
	mu      sync.Mutex
	devices [32]PCIFunction
	address uint32 // CONFIG_ADDRESS
	windows atomic.Pointer[[]pciWindow]
}

// pciWindow is where a function's memory is.
type pciWindow struct {
	start, size uint64
	function    PCIMemory
}

// The legacy configuration mechanism (PCI 3.0, 3.2.2.3.2).
const (
	PCIDataPorts = 4 // 0xcfc to 0xcff
	pciEnable    = 1 << 31
)

// NewPCI returns a bus with a host bridge at device 0.
func NewPCI() *PCI {
	p := &PCI{}
	p.devices[0] = newHostBridge()
	return p
}

// ErrPCIFull is returned when no device number is free.
var ErrPCIFull = errors.New("all 32 device numbers of the PCI bus are taken")

// Add puts a function on the bus, before the guest runs, and returns its device number, from
// 1 to 31. The error is ErrPCIFull.
func (p *PCI) Add(f PCIFunction) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, d := range p.devices {
		if d == nil {
			p.devices[i] = f
			return i, nil
		}
	}
	return 0, ErrPCIFull
}

// access finds the function that bus, device and function number name.
func (p *PCI) access(bdf uint16, offset uint16, data []byte, write bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dev := p.devices[bdf>>3&31]
	if bdf>>8 != 0 || bdf&7 != 0 || dev == nil || int(offset)+len(data) > pciConfigSize {
		// Nothing answers, neither behind the space of a conventional function: a guest that
		// saw zeros there would look for extended capabilities, each kind anew.
		if !write {
			FillOnes(data)
		}
		return
	}
	if write {
		dev.ConfigWrite(offset, data)
		p.updateWindows()
	} else {
		dev.ConfigRead(offset, data)
	}
}

// Save returns CONFIG_ADDRESS.
func (p *PCI) Save() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

// Load takes what Save has returned, and looks where the functions' memory is,
// whose own state was loaded before.
func (p *PCI) Load(address uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.address = address
	p.updateWindows()
}

// updateWindows notes where the functions' memory is after a change; mu is
// held.
func (p *PCI) updateWindows() {
	var now []pciWindow
	for _, d := range p.devices {
		if f, ok := d.(PCIMemory); ok {
			if addr, size, ok := f.Window(); ok {
				now = append(now, pciWindow{addr, size, f})
			}
		}
	}
	p.windows.Store(&now)
}

// PCIWindow is the part of guest memory that PCI functions share, from Base.
type PCIWindow struct {
	*PCI
	Base uint64
}

// Read reads from the function whose memory is there.
func (w PCIWindow) Read(offset uint64, data []byte) {
	if f, at := w.find(w.Base + offset); f != nil {
		f.BARRead(at, data)
		return
	}
	FillOnes(data)
}

// Write is Read's counterpart.
func (w PCIWindow) Write(offset uint64, data []byte) {
	if f, at := w.find(w.Base + offset); f != nil {
		f.BARWrite(at, data)
	}
}

func (p *PCI) find(addr uint64) (PCIMemory, uint64) {
	if windows := p.windows.Load(); windows != nil {
		for _, w := range *windows {
			if addr >= w.start && addr-w.start < w.size {
				return w.function, addr - w.start
			}
		}
	}
	return nil, 0
}

// Read and Write serve the ECAM window, addressed from its start.
func (p *PCI) Read(offset uint64, data []byte) {
	p.access(uint16(offset>>12), uint16(offset&0xfff), data, false)
}

// Write is Read's counterpart.
func (p *PCI) Write(offset uint64, data []byte) {
	p.access(uint16(offset>>12), uint16(offset&0xfff), data, true)
}

// PCIAddressPort is CONFIG_ADDRESS at port 0xcf8.
type PCIAddressPort struct{ *PCI }

// In reads the register, which answers only to four bytes at once.
func (p PCIAddressPort) In(_ uint16, data []byte) {
	FillOnes(data)
	if len(data) == 4 {
		p.mu.Lock()
		defer p.mu.Unlock()
		binary.LittleEndian.PutUint32(data, p.address)
	}
}

// Out writes the register.
func (p PCIAddressPort) Out(_ uint16, data []byte) {
	if len(data) == 4 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.address = binary.LittleEndian.Uint32(data)
	}
}

// PCIDataPort is CONFIG_DATA at ports 0xcfc to 0xcff.
type PCIDataPort struct{ *PCI }

// In reads from the selected register.
func (p PCIDataPort) In(offset uint16, data []byte) { p.transfer(offset, data, false) }

// Out writes to the selected register.
func (p PCIDataPort) Out(offset uint16, data []byte) { p.transfer(offset, data, true) }

func (p PCIDataPort) transfer(offset uint16, data []byte, write bool) {
	p.mu.Lock()
	a := p.address
	p.mu.Unlock()
	if a&pciEnable != 0 {
		p.access(uint16(a>>8), uint16(a&0xfc)+offset, data, write)
	} else if !write {
		FillOnes(data)
	}
}

// String lists the functions by address and vendor:device, for logs.
func (p *PCI) String() string {
	s := ""
	for i := range p.devices {
		var id [4]byte
		if p.Read(uint64(i)<<15, id[:]); id[0] != 0xff {
			s += fmt.Sprintf("00:%02x.0 %04x:%04x\n", i, binary.LittleEndian.Uint16(id[:]), binary.LittleEndian.Uint16(id[2:]))
		}
	}
	return s
}

// hostBridge is the function that every root complex shows.
type hostBridge struct {
	config [pciConfigSize]byte
}

func newHostBridge() *hostBridge {
	const intel, bridge = 0x8086, 0x0d57
	h := &hostBridge{}
	binary.LittleEndian.PutUint16(h.config[pciVendor:], intel)
	binary.LittleEndian.PutUint16(h.config[pciDevice:], bridge)
	copy(h.config[pciClass:], []byte{0, 0, 6}) // a host bridge
	return h
}

// ConfigRead implements PCIFunction.
func (h *hostBridge) ConfigRead(offset uint16, data []byte) { copy(data, h.config[offset:]) }

// ConfigWrite ignores everything: the bridge has nothing to set.
func (h *hostBridge) ConfigWrite(uint16, []byte) {}
