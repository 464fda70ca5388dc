package native

import (
	"encoding/binary"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLayout holds the assembly's offsets to Context.
func TestLayout(t *testing.T) {
	var c Context
	for name, got := range map[string][2]uintptr{
		"Flags": {unsafe.Offsetof(c.Flags), 128}, "hostSP": {unsafe.Offsetof(c.hostSP), 136}, "hostBP": {unsafe.Offsetof(c.hostBP), 144},
		"returnTo": {unsafe.Offsetof(c.returnTo), 152}, "trap": {unsafe.Offsetof(c.trap), 160}, "trapAt": {unsafe.Offsetof(c.trapAt), 168},
		"mask": {unsafe.Offsetof(c.mask), 176}, "avx": {unsafe.Offsetof(c.avx), 184}, "mxcsr": {unsafe.Offsetof(c.mxcsr), 188},
		"Scratch": {unsafe.Offsetof(c.Scratch), scratchOffset}, "XSave": {unsafe.Offsetof(c.XSave), 512},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is at %d, not %d", name, got[0], got[1])
		}
	}
	var f Frame
	for name, got := range map[string][2]uintptr{
		"Attention": {unsafe.Offsetof(f.Attention), 0}, "Trap": {unsafe.Offsetof(f.Trap), 4}, "TrapAt": {unsafe.Offsetof(f.TrapAt), 8},
		"hostSP": {unsafe.Offsetof(f.hostSP), 16}, "HostRBP": {unsafe.Offsetof(f.HostRBP), 24},
		"Return": {unsafe.Offsetof(f.Return), 32}, "TrapExit": {unsafe.Offsetof(f.TrapExit), 40},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is at %d, not %d", name, got[0], got[1])
		}
	}
	if unsafe.Sizeof(c) != pageSize {
		t.Errorf("a context has %d bytes", unsafe.Sizeof(c))
	}
}

func newUnit(t testing.TB) *Unit {
	u, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	binary.LittleEndian.PutUint32(u.XSave[24:], DefaultMXCSR)
	binary.LittleEndian.PutUint16(u.XSave[:], 0x37f)
	return u
}

// xmm is where a register is in the XSAVE area.
func (u *Unit) xmm(n int) []byte { return u.XSave[160+16*n:][:16] }

// TestRun runs pieces on registers, on memory, and into traps.
func TestRun(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name  string
		piece Piece
		setup func(u *Unit)
		trap  uint8
		at    int
		check func(u *Unit) bool
	}{
		{name: "paddq xmm1, xmm2", piece: Piece{Code: []byte{0x66, 0x0f, 0xd4, 0xca}},
			setup: func(u *Unit) { le.PutUint64(u.xmm(1), 5); le.PutUint64(u.xmm(2), 7) },
			check: func(u *Unit) bool { return le.Uint64(u.xmm(1)) == 12 }},
		{name: "movdqu xmm3, [scratch+16]", piece: Piece{Code: []byte{0xf3, 0x0f, 0x6f, 0x1d, 16, 0, 0, 0}, ScratchAt: 4, ScratchEnd: 8},
			setup: func(u *Unit) { le.PutUint64(u.Scratch[16:], 99) },
			check: func(u *Unit) bool { return le.Uint64(u.xmm(3)) == 99 }},
		{name: "movdqu [scratch], xmm3", piece: Piece{Code: []byte{0xf3, 0x0f, 0x7f, 0x1d, 0, 0, 0, 0}, ScratchAt: 4, ScratchEnd: 8},
			setup: func(u *Unit) { le.PutUint64(u.xmm(3), 77) },
			check: func(u *Unit) bool { return le.Uint64(u.Scratch[:]) == 77 }},
		{name: "movq rsp, xmm0; movq r15, xmm0; movq rax, xmm0", piece: Piece{Code: []byte{0x66, 0x48, 0x0f, 0x7e, 0xc4, 0x66, 0x49, 0x0f, 0x7e, 0xc7, 0x66, 0x48, 0x0f, 0x7e, 0xc0}},
			setup: func(u *Unit) { le.PutUint64(u.xmm(0), 0x1234567) },
			check: func(u *Unit) bool {
				return u.GPR[4] == 0x1234567 && u.GPR[15] == 0x1234567 && u.GPR[0] == 0x1234567 && u.GPR[14] == 14
			}},
		{name: "comisd sets flags", piece: Piece{Code: []byte{0x66, 0x0f, 0x2f, 0xc1}},
			setup: func(u *Unit) { u.Flags = 0x801 }, // equal: ZF
			check: func(u *Unit) bool { return u.Flags&arithmeticFlags == 0x40 }},
		{name: "fld [scratch] tells no address", piece: Piece{Code: []byte{0xd9, 0x05, 0, 0, 0, 0}, ScratchAt: 2, ScratchEnd: 6},
			check: func(u *Unit) bool { return [16]byte(u.XSave[8:24]) == [16]byte{} }},
		{name: "ud2 behind another", piece: Piece{Code: []byte{0x66, 0x0f, 0xd4, 0xca, 0x0f, 0x0b}}, trap: 6, at: 4,
			check: func(u *Unit) bool { return u.GPR[15] == 15 && u.GPR[4] == 4 }},
		{name: "movaps, misaligned", piece: Piece{Code: []byte{0x0f, 0x28, 0x05, 8, 0, 0, 0}, ScratchAt: 3, ScratchEnd: 7}, trap: 13},
		{name: "movdqu beyond the end", piece: Piece{Code: []byte{0xf3, 0x0f, 0x7f, 0x1d, 248, 0, 0, 0}, ScratchAt: 4, ScratchEnd: 8}, trap: 14},
		{name: "divss by 0, not masked", piece: Piece{Code: []byte{0xf3, 0x0f, 0x5e, 0xc1}},
			setup: func(u *Unit) {
				le.PutUint32(u.XSave[24:], DefaultMXCSR&^0x200)
				le.PutUint32(u.xmm(0), 0x3f800000)
			}, trap: 19},
		{name: "fld1; fldz; fdivp; fwait, not masked", piece: Piece{Code: []byte{0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b}},
			setup: func(u *Unit) { le.PutUint16(u.XSave[:], 0x37b) }, trap: 16, at: 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUnit(t)
			for i := range u.GPR {
				u.GPR[i] = uint64(i)
			}
			if c.setup != nil {
				c.setup(u)
			}
			trap, ok := u.Run(&c.piece)
			if ok != (c.trap == 0) || trap.Vector != c.trap || trap.Offset != c.at {
				t.Fatalf("ended %v, trap %+v", ok, trap)
			}
			if c.check != nil && !c.check(u) {
				t.Errorf("%+v", u.Context)
			}
		})
	}
}

// TestSignals runs pieces while signals come, as the runtime's own do.
func TestSignals(t *testing.T) {
	u := newUnit(t)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Kill(os.Getpid(), unix.SIGURG)
				time.Sleep(10 * time.Microsecond)
			}
		}
	}()
	defer close(stop)
	add := &Piece{Code: []byte{0x66, 0x0f, 0xd4, 0xca}}
	bad := &Piece{Code: []byte{0x0f, 0x0b}}
	binary.LittleEndian.PutUint64(u.xmm(2), 1)
	u.GPR[4] = 0x10 // no stack at all
	for range 50000 {
		if _, ok := u.Run(add); !ok {
			t.Fatal("trapped")
		}
		if trap, ok := u.Run(bad); ok || trap.Vector != 6 {
			t.Fatal("no trap")
		}
	}
	if n := binary.LittleEndian.Uint64(u.xmm(1)); n != 50000 {
		t.Errorf("added %d times", n)
	}
}

// TestGoFaults sees that faults of Go code are Go's still.
func TestGoFaults(t *testing.T) {
	newUnit(t)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var p *int
	*p = 1
}

func BenchmarkRun(b *testing.B) {
	u := newUnit(b)
	add := &Piece{Code: []byte{0x66, 0x0f, 0xd4, 0xca}}
	b.ReportAllocs()
	for b.Loop() {
		u.Run(add)
	}
}
