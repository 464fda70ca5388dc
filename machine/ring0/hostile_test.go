package ring0

import (
	"sync/atomic"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// TestStoreAcrossTheEnd: a store that begins in the last page of the address space goes
// on in the first, and does nothing where that is not mapped.
func TestStoreAcrossTheEnd(t *testing.T) {
	const present = x86.PTEPresent | x86.PTEWritable
	for _, c := range []struct {
		name   string
		code   []byte
		mapped bool
	}{
		{"mov, first page unmapped", []byte{0x48, 0x89, 0x03}, false},
		{"mov", []byte{0x48, 0x89, 0x03}, true},
		{"fxsave, first page unmapped", []byte{0x0f, 0xae, 0x03}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cpu := fuzzCPU(t, c.code)
			mem := cpu.tables.mem.(fuzzMemory)
			// The last linear page is RAM page 9, the first one page 10 or nothing.
			le.PutUint64(mem[1][8*511:], 0x5000|present)
			le.PutUint64(mem[5][8*511:], 0x6000|present)
			le.PutUint64(mem[6][8*511:], 0x7000|present)
			le.PutUint64(mem[7][8*511:], 0x9000|present)
			le.PutUint64(mem[4][:], 0)
			if c.mapped {
				le.PutUint64(mem[4][:], 0xa000|present)
			}
			cpu.FlushTLB()
			cpu.r[rAX], cpu.r[rBX] = 0x1122334455667788, ^uint64(15)
			if c.code[0] == 0x48 {
				cpu.r[rBX] = ^uint64(3)
			}
			cpu.Execute(1, false, new(atomic.Bool))
			low, high := le.Uint32(mem[9][pageSize-4:]), le.Uint32(mem[10][:])
			switch {
			case c.mapped && (low != 0x55667788 || high != 0x11223344):
				t.Errorf("%#x %#x was stored", high, low)
			case !c.mapped && (low != 0 || high != 0):
				t.Errorf("%#x %#x was stored where half is not mapped", high, low)
			}
		})
	}
}

// countedMemory counts how often pages are looked at.
type countedMemory struct {
	fuzzMemory
	pages int
}

func (m *countedMemory) Page(gpa uint64) *[pageSize]byte {
	m.pages++
	return m.fuzzMemory.Page(gpa)
}

// TestTablesInCircles: tables whose entries all point to themselves, or to one another,
// are looked through once a level and not once a path, of which there are 512³.
func TestTablesInCircles(t *testing.T) {
	const entry = x86.PTEPresent | x86.PTEWritable | x86.PTEUser
	for _, tables := range []int{1, 2, fuzzPages - 1} {
		c := fuzzCPU(t, []byte{0xcc})
		mem := &countedMemory{fuzzMemory: c.tables.mem.(fuzzMemory)}
		c.tables.mem = mem
		for i := range tables {
			for k := range 512 {
				le.PutUint64(mem.fuzzMemory[1+i][8*k:], uint64(1+(i+k)%tables)<<12|entry)
			}
		}
		c.Load(&kvm.Regs{RIP: 0x8000}, &kvm.Sregs{CR3: 0x1000, CR0: x86.CR0PG | x86.CR0WP | 1, CR4: x86.CR4PAE, EFER: x86.EFERLMA,
			CS: flatSegment(0x10, true, 0), SS: flatSegment(0x18, false, 0)})
		for _, what := range []string{"the first time", "after a page was forgotten", "after a store"} {
			mem.pages = 0
			if what == "after a store" {
				c.blocked = 0x1000
				if err := c.Stored(); err != nil {
					t.Fatal(err)
				}
			} else {
				c.EnterUser()
				c.LeaveUser()
				c.tables.forgotten++
			}
			if most := 1 + 3*tables*512; mem.pages > most {
				t.Errorf("%d tables, %s: %d pages are looked at, at most %d", tables, what, mem.pages, most)
			}
			for i := range tables {
				if !c.tables.isTable(uint64(1+i) << 12) {
					t.Errorf("%d tables, %s: table %d is not marked", tables, what, i)
				}
			}
		}
	}
}
