package bootloader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"vmm/internal/elf"
	"vmm/internal/x86"
	"vmm/kvm"
)

// Memory is guest RAM. Slice returns n bytes at gpa, or an error where they
// are not all RAM.
type Memory interface {
	Slice(gpa, n uint64) ([]byte, error)
}

// E820 is one range of the guest's physical memory map.
type E820 struct {
	Addr uint64
	Size uint64
	Type uint32
}

// Types of E820 ranges (ACPI 6.5, table 15.4).
const (
	E820RAM      = 1
	E820Reserved = 2
	E820ACPI     = 3
)

// Params is what the platform tells the loader.
type Params struct {
	E820     []E820
	RSDP     uint64 // guest-physical address of ACPI's root pointer
	Cmdline  string
	Initrd   []byte
	Protocol Protocol
}

// Where the loader puts its own structures: in the first 640 KiB, which no
// kernel is loaded to.
const (
	gdtAddr       = 0x500
	pvhInfoAddr   = 0x6000
	bootParams    = 0x7000 // the zero page
	stackTop      = 0x8ff0
	pml4Addr      = 0x9000
	pdptAddr      = 0xa000
	pdAddr        = 0xb000 // four pages: the first 4 GiB in 2 MiB pages
	cmdlineAddr   = 0x20000
	highMemory    = 0x100000
	initrdMax     = 0x7fffffff // what all kernels can reach early
	kernelAligned = 2 << 20
)

// Entry is the state in which a vCPU enters the kernel.
type Entry struct {
	// Regs are all general registers.
	Regs kvm.Regs
	// Long is set for long mode with paging on; else flat 32-bit mode.
	Long bool
}

// Load puts the kernel, its initrd and the boot information into memory.
func (k *Kernel) Load(mem Memory, p Params) (*Entry, error) {
	proto := p.Protocol
	if proto == Auto || proto == "" {
		if proto = ELF64; k.Compressed() {
			proto = BzImage
		}
	}
	if proto != BzImage {
		if err := k.Unpack(); err != nil {
			return nil, err
		}
	}
	switch {
	case proto == BzImage && k.setup == nil:
		return nil, k.wrap(errors.New("an ELF file has no bzImage entry: elf and pvh are protocols for it"))
	case proto == PVH && k.pvh == 0:
		return nil, k.wrap(errors.New("has no PVH entry (CONFIG_PVH)"))
	}
	e, err := k.load(mem, p, proto)
	return e, k.wrap(err)
}

func (k *Kernel) load(mem Memory, p Params, proto Protocol) (*Entry, error) {
	var entry, end uint64
	var err error
	if proto == BzImage {
		entry, end, err = k.loadBzImage(mem)
	} else {
		entry, end, err = k.loadELF(mem)
	}
	if err != nil {
		return nil, err
	}
	initrd, err := k.loadInitrd(mem, p, end)
	if err != nil {
		return nil, err
	}
	limit := maxCmdline
	if k.setup != nil && k.setup.CmdlineSize > 0 {
		limit = int(k.setup.CmdlineSize) + 1
	}
	if len(p.Cmdline)+1 > limit {
		return nil, fmt.Errorf("the kernel command line has %d bytes, at most %d fit", len(p.Cmdline), limit-1)
	}
	if err := put(mem, cmdlineAddr, append([]byte(p.Cmdline), 0)); err != nil {
		return nil, err
	}
	if proto == PVH {
		if err := loadPVHInfo(mem, p, initrd); err != nil {
			return nil, err
		}
		return &Entry{Regs: kvm.Regs{RIP: uint64(k.pvh), RBX: pvhInfoAddr, RFLAGS: 2}}, nil
	}
	if err := k.loadBootParams(mem, p, initrd); err != nil {
		return nil, err
	}
	if err := loadPageTables(mem, false); err != nil {
		return nil, err
	}
	return &Entry{Long: true, Regs: kvm.Regs{RIP: entry, RSI: bootParams, RSP: stackTop, RBP: stackTop, RFLAGS: 2}}, nil
}

func put(mem Memory, gpa uint64, data []byte) error {
	to, err := mem.Slice(gpa, uint64(len(data)))
	if err == nil {
		copy(to, data)
	}
	return err
}

// loadBzImage copies the protected-mode part; its 64-bit entry is 0x200 in.
func (k *Kernel) loadBzImage(mem Memory) (entry, end uint64, err error) {
	h := k.setup
	at := h.PrefAddress
	if at < highMemory {
		at = highMemory
	}
	end = at + max(uint64(h.InitSize), uint64(len(k.data)-h.codeOffset()))
	if end < at {
		return 0, 0, fmt.Errorf("wants to be loaded at %#x", at)
	}
	if _, err := mem.Slice(at, end-at); err != nil {
		return 0, 0, tooSmall(end)
	}
	return at + 0x200, end, put(mem, at, k.data[h.codeOffset():])
}

func tooSmall(need uint64) error {
	return fmt.Errorf("the kernel needs memory up to %d MiB: give the guest more (-m)", (need+1<<20-1)>>20)
}

// loadELF copies the segments to their physical addresses.
func (k *Kernel) loadELF(mem Memory) (entry, end uint64, err error) {
	for _, p := range k.elf.Segments {
		if p.Type != elf.Load || p.MemorySize == 0 {
			continue
		}
		if p.Paddr < highMemory {
			return 0, 0, fmt.Errorf("segment at %#x is below 1 MiB, where the boot information lies", p.Paddr)
		}
		to, err := mem.Slice(p.Paddr, p.MemorySize)
		if err != nil {
			return 0, 0, tooSmall(p.Paddr + p.MemorySize)
		}
		copy(to, k.data[p.Offset:p.Offset+p.FileSize])
		end = max(end, p.Paddr+p.MemorySize)
	}
	// The header of the bzImage that it came in knows of more, such as brk.
	if h := k.setup; h != nil && h.PrefAddress+uint64(h.InitSize) > end && h.PrefAddress < end {
		end = h.PrefAddress + uint64(h.InitSize)
	}
	return k.elf.Entry, end, nil
}

// span is a range of guest memory.
type span struct{ addr, size uint64 }

// loadInitrd puts the initrd as high as the kernel can reach.
func (k *Kernel) loadInitrd(mem Memory, p Params, kernelEnd uint64) (span, error) {
	n := uint64(len(p.Initrd))
	if n == 0 {
		return span{}, nil
	}
	limit := uint64(initrdMax)
	if k.setup != nil {
		limit = uint64(k.setup.InitrdAddrMax)
	}
	var best uint64
	for _, e := range p.E820 {
		if e.Type != E820RAM || e.Addr > limit {
			continue
		}
		top := min(e.Addr+e.Size, limit+1)
		if n > top {
			continue
		}
		if at := (top - n) &^ 0xfff; at >= e.Addr && at >= kernelEnd {
			best = max(best, at)
		}
	}
	if best == 0 {
		return span{}, fmt.Errorf("the initrd (%d MiB) does not fit into memory beside the kernel: give the guest more (-m)", n>>20+1)
	}
	return span{best, n}, put(mem, best, p.Initrd)
}

// Offsets in struct boot_params (boot.rst, zero-page.rst).
const (
	bpACPIRSDP    = 0x070
	bpE820Entries = 0x1e8
	bpE820Table   = 0x2d0
	bpE820Max     = 128
	bpSize        = 4096
)

// loadBootParams fills the zero page.
func (k *Kernel) loadBootParams(mem Memory, p Params, initrd span) error {
	h := setupHeader{}
	if k.setup != nil {
		h = *k.setup
	}
	h.BootFlag, h.Header = bootFlagMagic, headerMagic
	h.TypeOfLoader = loaderUndefined
	h.Loadflags = h.Loadflags&^canUseHeap | loadedHigh
	h.CmdLinePtr, h.CmdlineSize = cmdlineAddr, uint32(len(p.Cmdline))
	h.RamdiskImage, h.RamdiskSize = uint32(initrd.addr), uint32(initrd.size)
	h.SetupData = 0
	if h.KernelAlignment == 0 {
		h.KernelAlignment = kernelAligned
	}
	if len(p.E820) > bpE820Max {
		return fmt.Errorf("memory map of %d ranges, at most %d", len(p.E820), bpE820Max)
	}
	var b bytes.Buffer
	b.Write(make([]byte, setupHeaderOffset))
	binary.Write(&b, binary.LittleEndian, h)
	page := make([]byte, bpSize)
	copy(page, b.Bytes())
	binary.LittleEndian.PutUint64(page[bpACPIRSDP:], p.RSDP)
	page[bpE820Entries] = uint8(len(p.E820))
	for i, e := range p.E820 {
		at := page[bpE820Table+20*i:]
		binary.LittleEndian.PutUint64(at, e.Addr)
		binary.LittleEndian.PutUint64(at[8:], e.Size)
		binary.LittleEndian.PutUint32(at[16:], e.Type)
	}
	return put(mem, bootParams, page)
}

// loadPVHInfo writes hvm_start_info with its memory map and module list
// (xen/include/public/arch-x86/hvm/start_info.h, version 1).
func loadPVHInfo(mem Memory, p Params, initrd span) error {
	const magic, version = 0x336ec578, 1
	var b bytes.Buffer
	w := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	const header, module = 56, 32
	var modules uint32
	var modAddr uint64
	if initrd.size > 0 {
		modules, modAddr = 1, pvhInfoAddr+header
	}
	w([]uint32{magic, version, 0, modules})
	w([]uint64{modAddr, cmdlineAddr, p.RSDP, pvhInfoAddr + header + module})
	w([]uint32{uint32(len(p.E820)), 0})
	w([]uint64{initrd.addr, initrd.size, 0, 0})
	for _, e := range p.E820 {
		w([]uint64{e.Addr, e.Size})
		w([]uint32{e.Type, 0})
	}
	if b.Len() > bootParams-pvhInfoAddr {
		return fmt.Errorf("memory map of %d ranges is too long", len(p.E820))
	}
	return put(mem, pvhInfoAddr, b.Bytes())
}

// LongMode prepares memory for 64-bit code without a kernel, entered at rip.
// With user, the first 4 GiB are open to user mode.
func LongMode(mem Memory, rip uint64, user bool) (*Entry, error) {
	return &Entry{Long: true, Regs: kvm.Regs{RIP: rip, RSP: stackTop, RFLAGS: 2}}, loadPageTables(mem, user)
}

// loadPageTables maps the first 4 GiB to themselves and writes the GDT.
func loadPageTables(mem Memory, user bool) error {
	bits := uint64(x86.PTEPresent | x86.PTEWritable)
	if user {
		bits |= x86.PTEUser
	}
	table := make([]byte, 6*4096)
	set := func(addr, v uint64) { binary.LittleEndian.PutUint64(table[addr-pml4Addr:], v|bits) }
	set(pml4Addr, pdptAddr)
	for i := range uint64(4) {
		set(pdptAddr+8*i, pdAddr+4096*i)
	}
	for i := range uint64(4 * 512) {
		set(pdAddr+8*i, i<<21|x86.PTELarge)
	}
	if err := put(mem, pml4Addr, table); err != nil {
		return err
	}
	return put(mem, gdtAddr, gdt[:])
}

// The selectors that the boot protocols ask for: __BOOT_CS and __BOOT_DS.
const (
	bootCS = 0x10
	bootDS = 0x18
	bootTR = 0x20
)

// gdt holds the flat segments behind those selectors (SDM 3, 3.4.5).
var gdt = func() (b [40]byte) {
	binary.LittleEndian.PutUint64(b[bootCS:], 0x00af9b000000ffff)
	binary.LittleEndian.PutUint64(b[bootDS:], 0x00cf93000000ffff)
	binary.LittleEndian.PutUint64(b[bootTR:], 0x008f8b000000ffff)
	return b
}()

// Apply changes a vCPU's reset state into the entry state.
func (e *Entry) Apply(s *kvm.Sregs) {
	seg := kvm.Segment{Limit: 0xffffffff, Present: 1, S: 1, G: 1}
	code, data := seg, seg
	code.Selector, code.Type = bootCS, 11
	data.Selector, data.Type, data.DB = bootDS, 3, 1
	s.TR = kvm.Segment{Limit: 0xffff, Selector: bootTR, Type: 11, Present: 1}
	s.CR0 = x86.CR0PE | x86.CR0ET
	if e.Long {
		code.L = 1
		s.CR0 |= x86.CR0PG
		s.CR3, s.CR4, s.EFER = pml4Addr, x86.CR4PAE, x86.EFERLME|x86.EFERLMA
		s.GDT = kvm.DTable{Base: gdtAddr, Limit: uint16(len(gdt) - 1)}
	} else {
		code.DB = 1
	}
	s.CS = code
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.IDT = kvm.DTable{}
}

// JoinInitrds concatenates initial RAM disks; the kernel takes several, each
// beginning at a multiple of four bytes.
func JoinInitrds(parts ...[]byte) []byte {
	if len(parts) == 1 {
		return parts[0]
	}
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
		out = append(out, make([]byte, align4(len(out))-len(out))...)
	}
	return out
}
