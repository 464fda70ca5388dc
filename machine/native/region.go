package native

import (
	"golang.org/x/sys/unix"
)

// Sizes of the memory for regions, which is behind the units' contexts.
const (
	regions      = 64
	regionsSize  = regions * RegionSize
	regionOffset = codeSize + units<<contextShift

	// RegionSize is the size of a Region, in bytes. What of it was never written to takes no memory.
	RegionSize = 46 << 20
)

// Region is memory for code that its owner makes, as a translator does. Unlike a piece, the
// code stays, and goes from one place of it to another by itself. It keeps its Frame's address
// in RSP, or that of a return address in front of it. It belongs to one goroutine.
type Region struct {
	number int
	// Code is for writing; it is executed at Base. Both have RegionSize bytes.
	Code []byte
	Base uint64
}

// NewRegion makes a region. Close gives it back. Safe for concurrent use. The error is
// ErrNoMemory where there are too many, or that of New.
func NewRegion() (*Region, error) {
	shared.Lock()
	defer shared.Unlock()
	if err := prepare(); err != nil {
		return nil, err
	}
	for n := range shared.regionInUse {
		if !shared.regionInUse[n] {
			shared.regionInUse[n] = true
			return &Region{n, shared.code[codeSize+n*RegionSize:][:RegionSize:RegionSize], uint64(regionBase) + uint64(n)*RegionSize}, nil
		}
	}
	return nil, ErrNoMemory
}

// Close gives the region back, and its memory to the system; it must not be used after that.
func (r *Region) Close() error {
	shared.Lock()
	defer shared.Unlock()
	shared.regionInUse[r.number] = false
	return r.Free(0)
}

// Free gives the memory from a multiple of the page's size on back to the system. The code
// there is zeros then.
func (r *Region) Free(from int) error { return unix.Madvise(r.Code[from:], unix.MADV_REMOVE) }

// Enter executes the code at an address with f in RSP, until it goes to f.Return or traps.
// What is in other registers then is nobody's.
func (r *Region) Enter(f *Frame, at uint64) { enterFrame(f, at) }

func enterFrame(f *Frame, at uint64)
