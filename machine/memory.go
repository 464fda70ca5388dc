package machine

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
	"vmm/internal/vmem"
	"vmm/kvm"
	"vmm/machine/engine"
)

// The guest's physical address space. RAM fills it from 0 up to the PCI hole
// and goes on at 4 GiB.
const (
	lowRAMEnd = 0xc0000000  // 3 GiB: where the PCI hole begins
	highRAM   = 0x100000000 // 4 GiB
	pciWindow = 0xc0000000  // 32-bit memory of PCI devices, up to ECAM
	ecamBase  = 0xe0000000
	// A guest looks at every function number of every bus that there could be, so no
	// more are offered than there are: the root's.
	pciBuses   = 1
	ecamSize   = pciBuses << 20 // PCI Express 5.0, 7.2.2
	ioapicBase = 0xfec00000
	identityPg = 0xfffbc000 // KVM_SET_IDENTITY_MAP_ADDR
	tssPages   = 0xfffbd000 // KVM_SET_TSS_ADDR, three pages
	helperBase = 0xfe000000 // see helper.go
	acpiBase   = 0xe0000    // where a PC's BIOS keeps the RSDP
	biosEnd    = 0x100000
	resetEntry = 0xffff0 // FFFF:0000, where a PC begins and where real mode jumps to reboot
	ebdaBase   = 0x9fc00

	pageSize = vmem.Page
	hugePage = vmem.HugePage

	// MinMemory and MaxMemory bound Config.Memory, in bytes.
	MinMemory = 16 << 20
	MaxMemory = 256 << 30
)

// ErrNotRAM is returned for a guest address that is not RAM.
var ErrNotRAM = errors.New("not guest RAM")

// region is RAM that is contiguous in the guest and in the host.
type region struct {
	gpa  uint64
	host []byte
}

// Memory is the guest's RAM. The guest changes it at any time: whoever reads
// it copies first and checks then. Its methods may be used concurrently, but for
// Close, after which there is no memory: a slice of it must not be touched then.
type Memory struct {
	regions []region
	mapped  []mapping // beside RAM; complete before the guest runs
	size    uint64
	backed  []Backing
	dirty   dirtyPages
	writer  engine.Writer // is told what devices write; nil if it needs not know
	// pagemap is this process's: one that is not dumpable cannot open it later (proc(5)).
	pagemap *os.File
}

// Backing is a part of guest RAM that begins as what a file holds. Offsets are
// in bytes and whole pages; one into RAM leaves out the holes between its
// regions.
type Backing struct {
	File       *os.File
	Offset     int64 // in RAM
	FileOffset int64
	Length     int64
}

// newMemory reserves size bytes of guest RAM; the host's pages come in on
// touch. huge asks for huge pages, from the reserved pool if it has enough
// and transparent ones otherwise. What a backing holds is mapped privately: pages
// come from the file on touch, and nothing is written back.
func newMemory(size uint64, huge bool, backings ...Backing) (*Memory, error) {
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	m := &Memory{size: size, pagemap: pagemap}
	low := min(size, lowRAMEnd)
	for _, r := range []struct{ gpa, size uint64 }{{0, low}, {highRAM, size - low}} {
		if r.size == 0 {
			continue
		}
		host, err := mapRAM(r.size, huge)
		if err != nil {
			m.close()
			return nil, fmt.Errorf("guest memory of %d MiB: %w", size>>20, err)
		}
		m.regions = append(m.regions, region{r.gpa, host})
	}
	for _, b := range backings {
		if err := m.back(b); err != nil {
			m.close()
			return nil, fmt.Errorf("guest memory from %s: %w", b.File.Name(), err)
		}
	}
	for _, r := range m.regions {
		unix.Madvise(r.host, unix.MADV_DONTDUMP) // a guest's secrets are in no core file
	}
	return m, nil
}

// back maps a file's part over RAM.
func (m *Memory) back(b Backing) error {
	start := int64(0)
	for _, r := range m.regions {
		end := start + int64(len(r.host))
		from, to := max(b.Offset, start), min(b.Offset+b.Length, end)
		if from < to {
			if err := vmem.Map(r.host[from-start:], int(b.File.Fd()), b.FileOffset+from-b.Offset, to-from,
				unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
				return err
			}
		}
		start = end
	}
	m.backed = append(m.backed, b)
	return nil
}

// RAM returns the guest's memory, in pieces that follow each other in a Backing.
func (m *Memory) RAM() [][]byte {
	var out [][]byte
	for _, r := range m.regions {
		out = append(out, r.host)
	}
	return out
}

// Range returns n bytes of RAM from an offset as in a Backing, in pieces. They must be
// within RAM.
func (m *Memory) Range(off, n int64) [][]byte { return iovec.Cut(nil, m.RAM(), off, n) }

// NewMemory reserves memory, in bytes and whole pages, for a machine that is made later,
// with Config.Received.
func NewMemory(size uint64) (*Memory, error) { return newMemory(size, false) }

// Close frees memory that no machine has taken over.
func (m *Memory) Close() error { return m.close() }

// mapRAM reserves memory whose address agrees with the guest's, which is a multiple
// of every size of page.
func mapRAM(size uint64, huge bool) ([]byte, error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	if huge && size%hugePage == 0 {
		// Wherever the kernel likes, which is a multiple of the page: one that does not
		// succeed at a fixed address takes away what is there. Without NORESERVE, so that
		// a pool too small is an error now and not a SIGBUS later.
		const log2 = 21 << unix.MAP_HUGE_SHIFT
		if at, err := unix.MmapPtr(-1, 0, nil, uintptr(size), prot, flags|unix.MAP_HUGETLB|log2); err == nil {
			return unsafe.Slice((*byte)(at), size), nil
		}
	}
	b, err := vmem.Reserve(size, prot)
	if err != nil {
		return nil, err
	}
	if huge {
		unix.Madvise(b, unix.MADV_HUGEPAGE) // best effort: THP may be off
	}
	return b, nil
}

func (m *Memory) close() error {
	var errs []error
	for _, r := range m.regions {
		errs = append(errs, vmem.Release(r.host))
	}
	m.regions = nil
	return errors.Join(append(errs, m.pagemap.Close())...)
}

// tell has a VM told what devices write, if it has to know. No device is there yet.
func (m *Memory) tell(vm engine.VM) { m.writer, _ = vm.(engine.Writer) }

// register gives the RAM to a VM, a slot a region.
func (m *Memory) register(vm engine.VM) error {
	flags := uint32(0)
	if m.dirty.on.Load() {
		flags = kvm.MemLogDirtyPages
	}
	for i, r := range m.regions {
		if err := vm.SetUserMemoryRegion(&kvm.UserspaceMemoryRegion{
			Slot: uint32(i), Flags: flags, GuestPhysAddr: r.gpa, MemorySize: uint64(len(r.host)),
			UserspaceAddr: uint64(uintptr(unsafe.Pointer(&r.host[0])))}); err != nil {
			return err
		}
	}
	return nil
}

// Slice returns the n bytes at gpa; they must lie in one region of RAM, or of a device's
// memory that can be written to, or the error is ErrNotRAM.
func (m *Memory) Slice(gpa, n uint64) ([]byte, error) { return m.find(gpa, n, true) }

// ReadSlice is Slice for who only reads: also of a device's memory that is for reading.
func (m *Memory) ReadSlice(gpa, n uint64) ([]byte, error) { return m.find(gpa, n, false) }

func (m *Memory) find(gpa, n uint64, write bool) ([]byte, error) {
	for _, r := range m.regions {
		if off := gpa - r.gpa; gpa >= r.gpa && off < uint64(len(r.host)) && n <= uint64(len(r.host))-off {
			return r.host[off : off+n : off+n], nil
		}
	}
	if b := m.findMapped(gpa, n, write); b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("%d bytes at %#x: %w", n, gpa, ErrNotRAM)
}

// Page implements ring0.Memory.
func (m *Memory) Page(gpa uint64) *[pageSize]byte {
	gpa &^= pageSize - 1
	for i := range m.regions {
		r := &m.regions[i]
		if off := gpa - r.gpa; off < uint64(len(r.host)) {
			return (*[pageSize]byte)(unsafe.Pointer(&r.host[off]))
		}
	}
	return nil
}

// Size implements ring0.Memory: an address above all RAM.
func (m *Memory) Size() uint64 {
	r := m.regions[len(m.regions)-1]
	return r.gpa + uint64(len(r.host))
}
