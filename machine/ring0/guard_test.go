package ring0

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"vmm/internal/x86"
	"vmm/kvm"
)

// storeByDevice stores to memory that a CPU may read meanwhile, as it is between a guest and its devices.
//
//go:norace
func storeByDevice(at *byte, v uint32) { *(*uint32)(unsafe.Pointer(at)) = v }

// TestGuardsConcurrent has one CPU call a function whose number is changed meanwhile, by another
// CPU or by a device: who has seen that it was changed must get the new number.
func TestGuardsConcurrent(t *testing.T) {
	const (
		changes = 2000
		flag    = lockData
		writer  = 0x800 // where in the page of the reader's code
	)
	// mov ecx, [flag]; call rbx; cmp eax, ecx; jb +9; cmp ecx, changes; jne to the begin; hlt; mov r8d, 1; hlt
	code := append(asm(withImm32(flag, 0x8b, 0x0c, 0x25), callRBX, []byte{0x39, 0xc8, 0x72, 9}, withImm32(changes, 0x81, 0xf9), []byte{0x75, 0xeb}, hltCode,
		withImm32(1, 0x41, 0xb8), hltCode), make([]byte, writer)...)[:writer]
	// inc ecx; mov [mapA+1], ecx; mov [flag], ecx; mov edx, 300; dec edx; jnz there; cmp ecx, changes; jne to the begin; hlt
	code = append(code, asm([]byte{0xff, 0xc1}, withImm32(mapA+1, 0x89, 0x0c, 0x25), withImm32(flag, 0x89, 0x0c, 0x25), withImm32(300, 0xba), []byte{0xff, 0xca, 0x75, 0xfc},
		withImm32(changes, 0x81, 0xf9), []byte{0x75, 0xdf}, hltCode)...)
	for name, device := range map[string]bool{"CPU": false, "device": true} {
		t.Run(name, func(t *testing.T) {
			reader := lockCPU(t, true)
			other, err := NewComplete(&lockBoard{testBoard{devices: map[uint64]byte{}, msrs: map[uint32]uint64{}}}, reader.tables, [64]Component{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { other.Close() })
			if err := other.Translate(); err != nil {
				t.Fatal(err)
			}
			for round := 0; reader.tables.guards.last.Load() < 10; round++ {
				if round == 1000 {
					t.Fatalf("%d guards were made", reader.tables.guards.last.Load())
				}
				regs := kvm.Regs{RBX: mapA, RSP: lockData + 0x1000, RIP: lockCode, RFLAGS: 2}
				layOut(reader, code, lockCode, lockMode{}, regs, 1)
				regs.RIP += writer
				layOut(other, code, lockCode, lockMode{}, regs, 1)
				mem := lockMemory(reader)
				le.PutUint64(mem[lockData>>12][:], 0)
				le.PutUint64(mem[4][mapA>>12*8:], codeA|x86.PTEPresent|x86.PTEWritable)
				copy(mem[codeA>>12][:], returns(0))
				reader.Changed(1)
				other.Changed(1)

				var running sync.WaitGroup
				var done atomic.Bool
				run := func(c *CPU) {
					for {
						c.Begin()
						stop := c.Run(1 << 30)
						c.End()
						if stop != StopAttention {
							if stop != StopHalt {
								t.Errorf("stopped by %v at %#x, %+v", stop, c.r[rIP], c.First)
							}
							return
						}
					}
				}
				running.Go(func() { run(reader); done.Store(true) })
				if device {
					running.Go(func() {
						for i := uint32(1); i <= changes; i++ {
							storeByDevice(&mem[codeA>>12][1], i)
							reader.tables.Wrote(codeA+1, 4)
							storeByDevice(&mem[flag>>12][0], i)
							runtime.Gosched()
						}
					})
				} else {
					running.Go(func() { run(other) })
				}
				for !done.Load() {
					reader.Attend()
					other.Attend()
					time.Sleep(50 * time.Microsecond)
				}
				running.Wait()
				if reader.r[r8] != 0 {
					t.Fatalf("%d changes are said to be made, and the function returns %d", reader.r[rCX], reader.r[rAX])
				}
			}
		})
	}
}
