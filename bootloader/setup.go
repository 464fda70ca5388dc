package bootloader

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// setupHeaderOffset is where the setup header lies in a bzImage and in
// boot_params (boot.rst, "The Real-Mode Kernel Header").
const setupHeaderOffset = 0x1f1

// setupHeader is struct setup_header.
type setupHeader struct {
	SetupSects          uint8
	RootFlags           uint16
	Syssize             uint32
	RAMSize             uint16
	VidMode             uint16
	RootDev             uint16
	BootFlag            uint16
	Jump                uint16
	Header              uint32
	Version             uint16
	RealmodeSwtch       uint32
	StartSysSeg         uint16
	KernelVersion       uint16
	TypeOfLoader        uint8
	Loadflags           uint8
	SetupMoveSize       uint16
	Code32Start         uint32
	RamdiskImage        uint32
	RamdiskSize         uint32
	BootsectKludge      uint32
	HeapEndPtr          uint16
	ExtLoaderVer        uint8
	ExtLoaderType       uint8
	CmdLinePtr          uint32
	InitrdAddrMax       uint32
	KernelAlignment     uint32
	RelocatableKernel   uint8
	MinAlignment        uint8
	XLoadflags          uint16
	CmdlineSize         uint32
	HardwareSubarch     uint32
	HardwareSubarchData uint64
	PayloadOffset       uint32
	PayloadLength       uint32
	SetupData           uint64
	PrefAddress         uint64
	InitSize            uint32
	HandoverOffset      uint32
	KernelInfoOffset    uint32
}

// Values of the setup header.
const (
	headerMagic     = 0x53726448 // "HdrS"
	bootFlagMagic   = 0xaa55
	loadedHigh      = 1 << 0 // loadflags LOADED_HIGH
	canUseHeap      = 1 << 7 // loadflags CAN_USE_HEAP
	xlfKernel64     = 1 << 0 // xloadflags XLF_KERNEL_64
	xlfAbove4G      = 1 << 1 // xloadflags XLF_CAN_BE_LOADED_ABOVE_4G
	loaderUndefined = 0xff

	// minVersion is 2.12, the first with xloadflags: Linux 3.8.
	minVersion = 0x020c
	// maxCmdline is the kernel's COMMAND_LINE_SIZE on x86, with the final NUL.
	maxCmdline = 2048
)

// parseSetup reads and checks the header of a bzImage.
func parseSetup(data []byte) (*setupHeader, error) {
	h := &setupHeader{}
	if err := binary.Read(bytes.NewReader(data[setupHeaderOffset:]), binary.LittleEndian, h); err != nil {
		return nil, ErrCutOff
	}
	switch {
	case h.BootFlag != bootFlagMagic || h.Header != headerMagic:
		return nil, ErrNotKernel
	case h.Version < minVersion:
		return nil, fmt.Errorf("boot protocol %d.%02d is too old: need 2.12 (Linux 3.8)", h.Version>>8, h.Version&0xff)
	case h.Loadflags&loadedHigh == 0:
		return nil, fmt.Errorf("a zImage: %w", ErrNotKernel)
	case h.XLoadflags&xlfKernel64 == 0:
		return nil, Err32Bit
	case h.codeOffset() >= len(data), len(data)-h.codeOffset() < int(h.Syssize)*16-15:
		return nil, ErrCutOff
	}
	return h, nil
}

// codeOffset is where the protected-mode kernel begins in the file.
func (h *setupHeader) codeOffset() int {
	n := int(h.SetupSects)
	if n == 0 {
		n = 4 // boot.rst: for compatibility
	}
	return (n + 1) * 512
}

// payload returns the compressed kernel in the image.
func (h *setupHeader) payload(data []byte) ([]byte, error) {
	from := uint64(h.codeOffset()) + uint64(h.PayloadOffset)
	to := from + uint64(h.PayloadLength)
	if h.PayloadLength == 0 || to > uint64(len(data)) {
		return nil, ErrCutOff
	}
	return data[from:to], nil
}
