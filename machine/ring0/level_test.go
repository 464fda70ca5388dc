package ring0

import (
	"testing"

	"vmm/internal/x86"
)

// TestLevelsTranslated goes between the levels in translated code, and leaves it at each: what
// was changed must be known there, and interrupts be as the guest has them.
func TestLevelsTranslated(t *testing.T) {
	for name, c := range map[string]struct {
		kernel []byte // the handler of SYSCALL
		at     uint64 // of RIP, in the handler or, from userCode on, in user mode
		cpl    uint8
		tlb    int
		gs     uint64
	}{
		// dec ebx; jz +3; sysretq; hlt
		"syscall": {[]byte{0xff, 0xcb, 0x74, 3, 0x48, 0x0f, 0x07, 0xf4}, 8, 0, tlbKernel, 0x1000},
		// stac; dec ebx; jz +6; clac; sysretq; hlt
		"syscall, stac": {[]byte{0x0f, 0x01, 0xcb, 0xff, 0xcb, 0x74, 6, 0x0f, 0x01, 0xca, 0x48, 0x0f, 0x07, 0xf4}, 14, 0, tlbKernelAll, 0x1000},
		// ...; stac; clac; hlt
		"stac, clac": {[]byte{0xff, 0xcb, 0x74, 3, 0x48, 0x0f, 0x07, 0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca, 0xf4}, 14, 0, tlbKernel, 0x1000},
		// ...; swapgs; hlt
		"swapgs": {[]byte{0xff, 0xcb, 0x74, 3, 0x48, 0x0f, 0x07, 0x0f, 0x01, 0xf8, 0xf4}, 11, 0, tlbKernel, 0x2000},
		// dec ebx; jnz +5; mov ecx, userCode+16; sysretq
		"sysret": {[]byte{0xff, 0xcb, 0x75, 5, 0xb9, 0x10, 0x90, 0, 0, 0x48, 0x0f, 0x07}, userCode + 16, 3, tlbUser, 0x1000},
	} {
		t.Run(name, func(t *testing.T) {
			cpu, board := completeCPU(t)
			if err := cpu.Translate(); err != nil {
				t.Fatal(err)
			}
			board.msrs[x86.MSRSFMask] = flagIF | flagAC
			inUser(cpu, false)
			cpu.base[segGS], cpu.kernelGSBase = 0x1000, 0x2000
			write := func(at uint64, code ...byte) {
				page := cpu.tables.mem.Page(at)
				copy(page[at&pageMask:], code)
			}
			write(userCode, 0x0f, 0x05, 0xeb, 0xfc) // syscall; jmp there
			write(userCode+16, 0x0f, 0xa2, 0xf4)    // cpuid; hlt, which is a fault
			write(kernelCode+0x800, c.kernel...)
			cpu.r[rBX] = 4
			cpu.sys |= 1 << 30 // which there is not, and SYSRET must not give back
			stop := cpu.Run(10000)
			want := kernelCode + 0x800 + c.at
			if c.cpl == 3 { // the handler of #GP has told where it was
				want = handlers + 16*vectorGP + 1
				if f := pushed(cpu); f[1] != userCode+18 || f[2] != 0x2b {
					t.Errorf("#GP at %#x, CS %#x", f[1], f[2])
				}
			} else if cpu.cpl != c.cpl || cpu.tlbNumber != c.tlb || cpu.base[segGS] != c.gs {
				t.Errorf("level %d, TLB %d, GS %#x", cpu.cpl, cpu.tlbNumber, cpu.base[segGS])
			}
			if cpu.sys>>22 != 0 {
				t.Errorf("RFLAGS %#x", cpu.flags())
			}
			if stop != StopHalt || cpu.RIP() != want {
				t.Errorf("stopped by %v at %#x, want %#x", stop, cpu.RIP(), want)
			}
			if cpu.sregs.CR4&x86.CR4SMAP == 0 || cpu.frame.syscallTarget == 0 {
				t.Error("this was not translated")
			}
		})
	}
}
