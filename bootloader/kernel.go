package bootloader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"vmm/bootloader/uki"
	"vmm/internal/elf"
)

// Protocol is how a kernel is entered.
type Protocol string

// The boot protocols. Auto takes what fits the image.
const (
	Auto    Protocol = "auto"
	BzImage Protocol = "bzimage" // its own decompressor runs in the guest
	ELF64   Protocol = "elf"     // unpacked on the host, entered in long mode
	PVH     Protocol = "pvh"     // unpacked on the host, entered at its PVH note
)

// Protocols lists the values that a user may give.
var Protocols = []Protocol{Auto, BzImage, ELF64, PVH}

// Errors that callers may tell apart with errors.Is.
var (
	ErrNotKernel = errors.New("not a Linux kernel (neither bzImage nor ELF nor a unified kernel image)")
	Err32Bit     = errors.New("a 32-bit kernel; vmm boots 64-bit ones")
	ErrCutOff    = errors.New("the file is cut off")
)

// Kernel is a kernel image, checked but not yet loaded.
type Kernel struct {
	path string
	data []byte
	// setup is the real-mode header of a bzImage, nil for an ELF file.
	setup *setupHeader
	elf   *elf.File
	pvh   uint32 // the PVH entry, 0 where there is none

	// Initrds and Args are what a unified kernel image has beside its kernel.
	Initrds [][]byte
	Args    string
}

// Open reads the kernel at path and finds out what it is. The error is ErrNotKernel, Err32Bit, ErrCutOff,
// or the system's.
func Open(path string) (*Kernel, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	k, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k.path = path
	return k, nil
}

// Parse is Open for an image in memory, which it keeps. Of a unified kernel image it
// takes the default profile.
func Parse(data []byte) (*Kernel, error) {
	switch {
	case bytes.HasPrefix(data, []byte(elf.Magic)):
		k := &Kernel{data: data}
		return k, k.parseELF(data)
	case isBzImage(data):
		k := &Kernel{data: data}
		var err error
		k.setup, err = parseSetup(data)
		return k, err
	}
	return parseUKI(data)
}

// parseUKI takes the kernel of a unified kernel image's default profile.
func parseUKI(data []byte) (*Kernel, error) {
	profiles, err := uki.Parse(data)
	if err != nil || bytes.HasPrefix(profiles[0].Linux, []byte("MZ")) && !isBzImage(profiles[0].Linux) {
		return nil, ErrNotKernel // nor may one hold another
	}
	p := profiles[0]
	k, err := Parse(p.Linux)
	if err != nil {
		return nil, fmt.Errorf("the section .linux of a unified kernel image: %w", err)
	}
	k.Initrds, k.Args = p.Initrds, p.Cmdline
	return k, nil
}

func isBzImage(data []byte) bool { return len(data) >= 0x206 && string(data[0x202:0x206]) == "HdrS" }

// Compressed reports whether the image would unpack itself in the guest.
func (k *Kernel) Compressed() bool { return k.setup != nil && k.elf == nil }

// Version is what a bzImage says of itself: the release, and who built it when. It
// is empty for others.
func (k *Kernel) Version() string {
	if k.setup == nil || k.setup.KernelVersion == 0 {
		return ""
	}
	at := int(k.setup.KernelVersion) + 0x200 // boot.rst, kernel_version
	if at >= len(k.data) {
		return ""
	}
	s, _, _ := bytes.Cut(k.data[at:min(at+maxVersion, len(k.data))], []byte{0})
	return string(s)
}

// maxVersion bounds Version, in bytes.
const maxVersion = 256

// Unpack replaces a bzImage by the ELF file that it carries.
func (k *Kernel) Unpack() error {
	if !k.Compressed() {
		return nil
	}
	payload, err := k.setup.payload(k.data)
	if err != nil {
		return k.wrap(err)
	}
	data, err := unpack(payload, int64(k.setup.InitSize))
	if err != nil {
		return k.wrap(err)
	}
	return k.wrap(k.parseELF(data))
}

func (k *Kernel) wrap(err error) error {
	if err == nil || k.path == "" {
		return err
	}
	return fmt.Errorf("%s: %w", k.path, err)
}

// parseELF checks the ELF file in data and makes it the image to load.
func (k *Kernel) parseELF(data []byte) error {
	f, err := elf.Read(bytes.NewReader(data))
	switch {
	case errors.Is(err, elf.Err32Bit):
		return Err32Bit
	case err != nil:
		return fmt.Errorf("damaged ELF file: %w: %v", ErrCutOff, err)
	case f.Machine != elf.MachineX86_64:
		return fmt.Errorf("an ELF file for machine %d, not x86-64: %w", f.Machine, ErrNotKernel)
	}
	loads := 0
	for _, s := range f.Segments {
		if s.Type != elf.Load {
			continue
		}
		loads++
		if s.Offset+s.FileSize < s.Offset || s.Offset+s.FileSize > uint64(len(data)) {
			return ErrCutOff
		}
		if s.FileSize > s.MemorySize || s.Paddr+s.MemorySize < s.Paddr {
			return fmt.Errorf("damaged ELF file: segment at %#x", s.Paddr)
		}
	}
	if loads == 0 {
		return fmt.Errorf("an ELF file without anything to load: %w", ErrNotKernel)
	}
	k.data, k.elf, k.pvh = data, f, pvhEntry(f)
	return nil
}

// xenELFNotePhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY, which marks the PVH entry.
const xenELFNotePhys32Entry = 18

// pvhEntry looks for the PVH entry in the ELF notes.
func pvhEntry(f *elf.File) uint32 {
	b := f.Note("Xen", xenELFNotePhys32Entry)
	if len(b) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

func align4(n int) int { return (n + 3) &^ 3 }
