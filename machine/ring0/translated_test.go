package ring0

import (
	"bytes"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
)

// endless are programs that never end.
var endless = map[string][]byte{
	"jmp":      {0xeb, 0xfe},
	"jmp rax":  {0x48, 0xc7, 0xc0, 0, 0, 1, 0, 0xff, 0xe0},                      // mov rax, lockCode; jmp rax
	"call ret": {0xe8, 2, 0, 0, 0, 0xeb, 0xf9, 0xc3},                            // call +2; jmp back; ret
	"vector":   {0x66, 0x0f, 0xef, 0xc0, 0xf3, 0x0f, 0x7f, 0x03, 0xeb, 0xf6},    // pxor xmm0, xmm0; movdqu [rbx], xmm0; jmp
	"memory":   {0x48, 0xff, 0x03, 0x48, 0x81, 0xc3, 0, 1, 0, 0, 0xeb, 0xf4},    // inc [rbx]; add rbx, 0x100: until it faults
	"faults":   {0x0f, 0x0b},                                                    // whose handler comes back
	"itself":   {0xfe, 0x04, 0x25, 0x12, 0, 1, 0, 0xb8, 0, 0, 0, 0, 0xeb, 0xf2}, // inc byte [lockCode+0x12] ...
}

// endlessCPU returns a CPU in front of a program that never ends.
func endlessCPU(t *testing.T, code []byte) *CPU {
	c := lockCPU(t, true)
	layOut(c, code, lockCode, lockMode{}, kvm.Regs{RBX: lockData, RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2 | flagIF}, 1)
	mem := lockMemory(c)
	for _, v := range []int{vectorUD, vectorPF} { // back to the begin, with RBX as it was
		at := 0x400 + 0x40*v
		le.PutUint16(mem[lockIDT>>12][16*v:], uint16(lockHandlers+at))
		copy(mem[lockHandlers>>12][at:], []byte{0xbb, 0, 0, 2, 0, 0x68, 0, 0, 1, 0, 0xc3}) // mov ebx, lockData; push lockCode; ret
	}
	le.PutUint64(mem[4][lockCode>>12*8:], lockCode|x86.PTEPresent|x86.PTEWritable)
	c.FlushTLB()
	return c
}

// TestTranslatedAttend has a CPU come back from each endless program as often as it is asked
// to, and take an interrupt.
func TestTranslatedAttend(t *testing.T) {
	for name, code := range endless {
		t.Run(name, func(t *testing.T) {
			c := endlessCPU(t, code)
			var owner sync.WaitGroup
			for i := range 20 {
				owner.Go(func() {
					for range i % 3 {
						runtime.Gosched()
					}
					c.Attend()
				})
				if stop := c.Run(1 << 30); stop != StopAttention {
					t.Fatalf("%v at %#x, %+v", stop, c.r[rIP], c.First)
				}
				owner.Wait()
			}
			rip := c.r[rIP]
			if !c.Interrupt(0x40) || c.r[rIP] != lockHandlers+16*0x40 || !c.Interrupt(vectorNMI) {
				t.Fatalf("the interrupt is at %#x", c.r[rIP])
			}
			if got, _ := c.load(lockStack&^15-40, 8); got != rip && name != "faults" {
				t.Logf("pushed %#x, was at %#x", got, rip) // the NMI's frame is over it
			}
			c.frame.Attention.Store(0)
			if stop := c.Run(1000); stop != StopHalt || c.r[rIP] != lockHandlers+16*vectorNMI+1 {
				t.Errorf("%v at %#x", stop, c.r[rIP])
			}
		})
	}
}

// TestTranslatedCollect collects garbage while two CPUs execute endless programs.
func TestTranslatedCollect(t *testing.T) {
	for _, names := range [][2]string{{"vector", "jmp rax"}, {"memory", "itself"}} {
		var cpus [2]*CPU
		var running sync.WaitGroup
		for i, name := range names {
			c := endlessCPU(t, endless[name])
			cpus[i] = c
			running.Go(func() {
				if stop := c.Run(1 << 30); stop != StopAttention {
					t.Errorf("%s: %v at %#x, %+v", name, stop, c.r[rIP], c.First)
				}
			})
		}
		for range 3 {
			runtime.GC()
		}
		for _, c := range cpus {
			c.Attend()
		}
		running.Wait()
	}
}

// TestTranslatedSTI wants interrupts to wait for the instruction behind STI, wherever that is.
func TestTranslatedSTI(t *testing.T) {
	for name, c := range map[string]struct {
		code []byte
		at   uint64
		rip  uint64 // where the interrupt comes
		stop Stop
	}{
		"hlt":           {[]byte{0x90, 0xfb, 0xf4}, lockCode, lockCode + 3, StopHalt},
		"alone":         {[]byte{0xfb, 0x90, 0x90, 0xf4}, lockCode, lockCode + 2, StopAttention},
		"in a block":    {[]byte{0x90, 0xfb, 0x90, 0x90, 0xf4}, lockCode, lockCode + 3, StopAttention},
		"at its end":    {[]byte{0x90, 0xfb, 0xeb, 2, 0, 0, 0x90, 0xf4}, lockCode, lockCode + 6, StopAttention},
		"at a page end": {[]byte{0x90, 0xfb, 0x90, 0x90, 0xf4}, lockCode + 0xffe, lockCode + 0x1001, StopAttention},
	} {
		t.Run(name, func(t *testing.T) {
			for _, waiting := range []bool{true, false} {
				cpu := lockCPU(t, true)
				cpu.board.(*lockBoard).wanted = waiting
				layOut(cpu, c.code, c.at, lockMode{}, kvm.Regs{RSP: lockData + 0x1000, RIP: c.at, RFLAGS: 2}, 1)
				cpu.SetWaiting(waiting)
				stop := cpu.Run(100)
				if !waiting {
					if stop != StopHalt || !cpu.InterruptsOn() {
						t.Errorf("%v at %#x", stop, cpu.r[rIP])
					}
				} else if stop != c.stop || cpu.r[rIP] != c.rip || !cpu.CanInterrupt() {
					t.Errorf("%v at %#x, want %#x", stop, cpu.r[rIP], c.rip)
				}
			}
		})
	}
}

// TestTranslatedFromOutside changes code as devices do, between runs.
func TestTranslatedFromOutside(t *testing.T) {
	c := lockCPU(t, true)
	code := []byte{0xb8, 0, 0, 0, 0, 0xeb, 0, 0xf4} // mov eax, ...; jmp +0; hlt
	layOut(c, code, lockCode, lockMode{}, kvm.Regs{RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}, 1)
	c.Changed(1)
	for i := range 30 {
		le.PutUint32(lockMemory(c)[lockCode>>12][1:], uint32(i/2))
		c.tables.Wrote(lockCode+1, 4)
		c.r[rIP] = lockCode
		if stop := c.Run(100); stop != StopHalt || c.r[rAX] != uint64(i/2) {
			t.Fatalf("%v, RAX %d instead of %d", stop, c.r[rAX], i/2)
		}
	}
}

// TestTranslatedAccessedDirty wants the bits of page tables set by translated accesses.
func TestTranslatedAccessedDirty(t *testing.T) {
	c := lockCPU(t, true)
	// mov rax, [rbx]; mov [rcx], rax; mov [rbx+0x2000], rax behind a read of it; hlt
	layOut(c, []byte{0x48, 0x8b, 0x03, 0x48, 0x89, 0x01, 0x48, 0x8b, 0x83, 0, 0x20, 0, 0, 0x48, 0x89, 0x83, 0, 0x20, 0, 0, 0xf4}, lockCode, lockMode{},
		kvm.Regs{RBX: lockData, RCX: lockData + 0x1000, RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}, 1)
	if stop := c.Run(100); stop != StopHalt {
		t.Fatal(stop)
	}
	for page, want := range map[uint64]uint64{lockData: x86.PTEAccessed, lockData + 0x1000: x86.PTEAccessed | x86.PTEDirty, lockData + 0x2000: x86.PTEAccessed | x86.PTEDirty,
		lockData + 0x4000: 0, lockCode: x86.PTEAccessed} {
		if got := le.Uint64(lockMemory(c)[4][page>>12*8:]) & (x86.PTEAccessed | x86.PTEDirty); got != want {
			t.Errorf("page %#x: %#x, want %#x", page, got, want)
		}
	}
}

// TestTranslatedJumpToZero goes to address 0 before anything has emptied a TLB.
func TestTranslatedJumpToZero(t *testing.T) {
	c := lockCPU(t, false)
	layOut(c, []byte{0x31, 0xc0, 0xff, 0xe0}, lockCode, lockMode{}, kvm.Regs{RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}, 1)
	if err := c.Translate(); err != nil {
		t.Skip(err)
	}
	if stop := c.Run(100); stop != StopHalt || c.r[rIP] != 1 {
		t.Errorf("%v at %#x", stop, c.r[rIP])
	}
}

// TestTranslatedEnd has code of each length at the end of memory, behind which nothing can be read.
func TestTranslatedEnd(t *testing.T) {
	const last = lockPages - 1
	m, err := unix.Mmap(-1, 0, (lockPages+1)*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := unix.Mprotect(m[lockPages*pageSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 24; n++ {
		code := append(bytes.Repeat([]byte{0x90}, n-1), 0xf4) // nop, hlt
		if n > 3 {
			copy(code[n-4:], []byte{0x83, 0xc0, 1}) // add eax, 1
		}
		c := lockCPU(t, true)
		c.tables.mem = lockRAM(unsafe.Slice((*[pageSize]byte)(unsafe.Pointer(&m[0])), lockPages))
		at := uint64(lockPages*pageSize - n)
		layOut(c, code, at, lockMode{}, kvm.Regs{RSP: lockData + 0x1000, RIP: at, RFLAGS: 2}, 1)
		le.PutUint64(lockMemory(c)[4][8*last:], last<<12|x86.PTEPresent)
		if stop := c.Run(100); stop != StopHalt || c.r[rIP] != lockPages*pageSize {
			t.Errorf("%d bytes: %v at %#x", n, stop, c.r[rIP])
		}
	}
}

// TestTranslatedRoom has translations forgotten while a program runs, for want of room.
func TestTranslatedRoom(t *testing.T) {
	for name, fill := range map[string]func(*translator){
		"the region is full": func(t *translator) {
			t.room.take(len(t.b) - t.n)
			t.n = len(t.b)
		},
		"others have much": func(t *translator) {
			t.room.take(maxRoom)
			t.room.owners.Add(maxRoom / minShare)
			t.room.take(minShare)
			t.n += minShare
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := lockCPU(t, true)
			// add eax, 1; jmp; add eax, 2; jmp; add eax, 4; hlt
			code := []byte{0x83, 0xc0, 1, 0xeb, 0, 0x83, 0xc0, 2, 0xeb, 0, 0x83, 0xc0, 4, 0xf4}
			layOut(c, code, lockCode, lockMode{}, kvm.Regs{RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}, 1)
			mine := c.translator
			fill(mine)
			others := int(mine.room.used.Load()) - mine.n + mine.begin
			resets := mine.resets
			if stop := c.Run(100); stop != StopHalt || c.r[rAX] != 7 {
				t.Errorf("%v, RAX %d", stop, c.r[rAX])
			}
			if mine.resets != resets+1 {
				t.Errorf("forgotten %d times", mine.resets-resets)
			}
			if got := int(mine.room.used.Load()); got != others+mine.n-mine.begin {
				t.Errorf("%d bytes are in use, and should %d", got, others+mine.n-mine.begin)
			}
		})
	}
}
