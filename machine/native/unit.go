package native

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
)

// Sizes of the mappings: code of all units, a context for each, then the regions.
const (
	units        = 512
	unitShift    = 15 // 32 KiB of code a unit
	contextShift = 13 // a page, and one behind it that is not accessible
	codeSize     = units << unitShift

	slotSize = 256 // a piece with what surrounds it
	slots    = 1 << unitShift / slotSize

	// MaxCode is the size of a piece, in bytes.
	MaxCode = slotSize - prologueSize - epilogueSize
)

// Components of the extended state that a piece can use (SDM 1, 13.1): x87, SSE, AVX
// and AVX-512. Others, such as the rights to pages (PKRU), stay this process's.
const Components = 1<<0 | 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<7

// XSaveSize is the size of Context.XSave in bytes: all of Components in the standard
// format (SDM 1, 13.4.3).
const XSaveSize = 2688

// Context is what a unit's pieces compute with.
type Context struct {
	// GPR are the general registers, by number.
	GPR [16]uint64
	// Flags is RFLAGS, of which only the arithmetic flags are taken.
	Flags uint64

	hostSP, hostBP uint64
	returnTo       uint64
	trap           uint64 // the number plus one; 0: none
	trapAt         uint64
	mask           uint64 // of components
	avx            uint32
	mxcsr          uint32 // the host's
	_              [320]byte

	// XSave is the extended state as XSAVE lays it out. Its header is the unit's.
	XSave [XSaveSize]byte
	_     [scratchOffset - 512 - XSaveSize]byte

	// Scratch is memory for a piece's operand. What is behind it is not accessible: an
	// operand at its end that is larger than was thought is a trap.
	Scratch [ScratchSize]byte
}

// ScratchSize is the size of Context.Scratch, which is aligned to it.
const ScratchSize = 256

const (
	pageSize      = 4096
	scratchOffset = pageSize - ScratchSize
)

// Unit executes pieces, one at a time. It belongs to one goroutine.
type Unit struct {
	*Context
	number int
	code   []byte // for writing
	run    uintptr
	// held says what each slot holds, so that it need not be written again.
	held [slots][]byte
}

// Trap is how a piece ended before its end.
type Trap struct {
	// Vector is the exception's number (SDM 3, 6.3.1).
	Vector uint8
	// Offset is of the instruction that trapped, in the piece.
	Offset int
}

// ErrNoMemory is the error for more units at once than there is room for.
var ErrNoMemory = errors.New("no room for another unit of native code")

// ErrNoXSave is the error for a CPU without XSAVE.
var ErrNoXSave = errors.New("this CPU has no XSAVE, which native code needs")

// What the assembly needs.
var (
	codeBase, contextBase, regionBase uintptr

	previous [32]uintptr // handlers by signal
)

var shared struct {
	sync.Mutex
	ready    bool
	code     []byte // for writing
	contexts []byte
	inUse    [units]bool

	regionInUse [regions]bool
}

// New makes a unit. Close gives it back. Safe for concurrent use. The first call maps
// memory and takes over SIGILL, SIGBUS, SIGFPE and SIGSEGV, for good: what is not a piece's
// goes on to the runtime's handler. So does SIGURG, by which the runtime wants a goroutine
// back, after a Region's code was told.
func New() (*Unit, error) {
	shared.Lock()
	defer shared.Unlock()
	if err := prepare(); err != nil {
		return nil, err
	}
	for n := range shared.inUse {
		if shared.inUse[n] {
			continue
		}
		context := shared.contexts[n<<contextShift:][:pageSize]
		if err := unix.Mprotect(context, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return nil, err
		}
		shared.inUse[n] = true
		u := &Unit{number: n, code: shared.code[n<<unitShift : (n+1)<<unitShift], run: codeBase + uintptr(n)<<unitShift}
		u.Context = (*Context)(unsafe.Pointer(&context[0]))
		*u.Context = Context{mask: Components & x86.XCR0(), mxcsr: DefaultMXCSR}
		if u.mask&(1<<2) != 0 {
			u.avx = 1
		}
		return u, nil
	}
	return nil, ErrNoMemory
}

// DefaultMXCSR is MXCSR as the Go runtime has it.
const DefaultMXCSR = 0x1f80

// Close gives the unit back; it must not be used after that.
func (u *Unit) Close() error {
	shared.Lock()
	defer shared.Unlock()
	shared.inUse[u.number] = false
	return nil
}

// prepare maps the memory and sets the handlers, once.
func prepare() error {
	if shared.ready {
		return nil
	}
	if x86.XCR0() == 0 {
		return ErrNoXSave
	}
	fd, err := unix.MemfdCreate("native code", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, codeSize+regionsSize); err != nil {
		return err
	}
	const rw = unix.PROT_READ | unix.PROT_WRITE
	if shared.code, err = unix.Mmap(fd, 0, codeSize+regionsSize, rw, unix.MAP_SHARED); err != nil {
		return err
	}
	// One reservation, so that a piece finds its context by a displacement.
	run, err := unix.Mmap(-1, 0, regionOffset+regionsSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err == nil {
		err = mapCode(fd, 0, run[:codeSize])
	}
	if err == nil {
		err = mapCode(fd, codeSize, run[regionOffset:])
	}
	if err != nil {
		unix.Munmap(shared.code)
		unix.Munmap(run)
		return fmt.Errorf("executable memory: %w", err)
	}
	shared.contexts = run[codeSize:regionOffset]
	codeBase = uintptr(unsafe.Pointer(&run[0]))
	contextBase = codeBase + codeSize
	regionBase = codeBase + regionOffset
	for _, sig := range []unix.Signal{unix.SIGILL, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGURG} {
		if err := takeSignal(sig); err != nil {
			return err
		}
	}
	shared.ready = true
	return nil
}

// mapCode maps a part of the file with code for execution.
func mapCode(fd int, offset int64, at []byte) error {
	_, err := unix.MmapPtr(fd, offset, unsafe.Pointer(&at[0]), uintptr(len(at)), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED|unix.MAP_FIXED)
	return err
}

// scratchDisplacement is what an instruction that ends end bytes behind the first byte of
// a slot's piece has to add to its RIP to address Scratch.
func (u *Unit) scratchDisplacement(slot, end int) int32 {
	from := u.run + uintptr(slot*slotSize+prologueSize+end)
	return int32(contextBase + uintptr(u.number)<<contextShift + scratchOffset - from)
}

// Piece is code for Run. Its instructions are register-only, but for one, which may
// have an operand in Scratch.
type Piece struct {
	Code []byte // at most MaxCode bytes
	// ScratchAt is where in Code the 32-bit displacement, relative to RIP, of the
	// operand is, which Run fills in; 0 if there is none. It holds an offset into Scratch.
	ScratchAt int
	// ScratchEnd is where the instruction with that operand ends.
	ScratchEnd int
}

// Run executes a piece with the registers and the extended state in u's Context. It
// reports whether it ran to its end; else the context is as it was when the instruction
// in Trap began.
func (u *Unit) Run(p *Piece) (trap Trap, ok bool) {
	slot := int(hash(p.Code) % slots)
	if !bytes.Equal(u.held[slot], p.Code) {
		u.write(slot, p)
	}
	u.Flags &= arithmeticFlags
	u.trap = 0
	u.PrepareExtended()
	start := u.run + uintptr(slot*slotSize)
	enter(u.Context, start)
	clear(u.XSave[XSavePointers : XSavePointers+16])
	if u.trap != 0 {
		return Trap{uint8(u.trap - 1), int(uintptr(u.trapAt) - start - prologueSize)}, false
	}
	return Trap{}, true
}

// PrepareExtended makes XSave a state that XRSTOR takes with all of ExtendedMask.
func (u *Unit) PrepareExtended() {
	le := binary.LittleEndian
	le.PutUint64(u.XSave[xsaveHeader:], u.mask)
	clear(u.XSave[xsaveHeader+8 : xsaveHeader+64])
	le.PutUint32(u.XSave[xsaveMXCSR:], le.Uint32(u.XSave[xsaveMXCSR:])&0xffff) // others may not be set
}

// Extended is the address of XSave, for code of a Region.
func (u *Unit) Extended() uint64 {
	p := &u.XSave
	return *(*uint64)(unsafe.Pointer(&p))
}

// ExtendedMask is what of the extended state a unit has: those of Components that the host
// has.
func (u *Unit) ExtendedMask() uint64 { return u.mask }

// Places in an XSAVE area (SDM 1, 13.4.1 and 13.4.2).
const (
	xsaveMXCSR  = 24
	xsaveHeader = 512

	// XSavePointers is where the addresses of the x87's last instruction and operand are, of
	// eight bytes each: they are this process's, and no guest may see them.
	XSavePointers = 8
)

// arithmeticFlags are CF, PF, AF, ZF, SF and OF.
const arithmeticFlags = 0x8d5

// write puts a piece into a slot.
func (u *Unit) write(slot int, p *Piece) {
	u.held[slot] = append(u.held[slot][:0], p.Code...)
	b := u.code[slot*slotSize : (slot+1)*slotSize]
	base := u.run + uintptr(slot*slotSize)
	ctx := uintptr(unsafe.Pointer(u.Context))
	relative := func(to uintptr, end int) uint32 { return uint32(to - base - uintptr(end)) }
	le := binary.LittleEndian
	n := copy(b, []byte{0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x4c, 0x8b, 0x3d, 0, 0, 0, 0}) // mov rax, [GPR 0]; mov r15, [GPR 15]
	le.PutUint32(b[3:], relative(ctx, 7))
	le.PutUint32(b[10:], relative(ctx+15*8, 14))
	code := b[n : n+copy(b[n:], p.Code)]
	if p.ScratchAt != 0 {
		at := code[p.ScratchAt:]
		le.PutUint32(at, le.Uint32(at)+uint32(u.scratchDisplacement(slot, p.ScratchEnd)))
	}
	n += len(p.Code)
	copy(b[n:], []byte{0x4c, 0x89, 0x3d, 0, 0, 0, 0, 0x4c, 0x8d, 0x3d, 0, 0, 0, 0, 0x41, 0xff, 0xa7, 152, 0, 0, 0}) // mov [GPR 15], r15; lea r15, [ctx]; jmp [r15+152]
	le.PutUint32(b[n+3:], relative(ctx+15*8, n+7))
	le.PutUint32(b[n+10:], relative(ctx, n+14))
}

const (
	prologueSize = 14
	epilogueSize = 21
)

// hash is FNV-1a.
func hash(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

func enter(ctx *Context, code uintptr)
func handlerAddress() uintptr
