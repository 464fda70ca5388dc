package ring0

import (
	"testing"

	"vmm/kvm"
)

// TestLockstepFaults runs programs that were executed wrongly once.
func TestLockstepFaults(t *testing.T) {
	data := kvm.Regs{RAX: 1, RBX: lockData, RCX: 7, RDX: 3, RSP: lockData + 0x1800, RSI: lockData + 0x10, RDI: lockData + 0x20, RIP: lockCode, RFLAGS: 2}
	with := func(f func(r *kvm.Regs)) kvm.Regs {
		r := data
		f(&r)
		return r
	}
	for _, c := range []struct {
		name string
		mode lockMode
		code []byte
		regs kvm.Regs
	}{
		// stc; mov rdx, [rbx]; inc eax; jnz +3; add ecx, edx; hlt; pushf; hlt
		{"flags that only the way of a jump reads", lockMode{}, []byte{0xf9, 0x48, 0x8b, 0x13, 0xff, 0xc0, 0x75, 0x03, 0x01, 0xd1, 0xf4, 0x9c, 0xf4}, data},
		// stc; mov rdx, [rbx]; inc eax; cmovbe esi, edx; add ecx, edx
		{"a flag that is wanted beside one that is overwritten", lockMode{}, []byte{0xf9, 0x48, 0x8b, 0x13, 0xff, 0xc0, 0x0f, 0x46, 0xf2, 0x01, 0xd1}, data},
		// mov rax, ...; mov [rbx+5], rax; ...; cmpxchg8b [rbx+5]; pushf; hlt
		{"cmpxchg8b that is not aligned", lockMode{}, []byte{0x89, 0x43, 0x05, 0x89, 0x53, 0x09, 0xf0, 0x0f, 0xc7, 0x4b, 0x05, 0x9c, 0xf4}, with(func(r *kvm.Regs) { r.RAX, r.RDX = 0x11223344, 0x55667788 })},
		{"cmpxchg8b across pages", lockMode{}, []byte{0x89, 0x43, 0x05, 0x89, 0x53, 0x09, 0x0f, 0xc7, 0x4b, 0x05, 0x9c, 0xf4}, with(func(r *kvm.Regs) { r.RAX, r.RDX, r.RBX = 0x11223344, 0x55667788, lockData+0xff7 })},
		{"REX in front of VEX", lockMode{}, []byte{0x48, 0xc5, 0xf8, 0x77}, data},
		{"REX in front of VEX, with memory", lockMode{}, []byte{0x41, 0xc5, 0xfa, 0x6f, 0x03}, data},
		{"RORX with a third register", lockMode{}, []byte{0xc4, 0xe3, 0x73, 0xf0, 0xc3, 0x05}, data},
		{"vmovd with a third register", lockMode{}, []byte{0xc4, 0xe1, 0x71, 0x7e, 0xc0}, data},
		{"BLSR of a number that is none", lockMode{}, []byte{0xc4, 0xe2, 0x78, 0xf3, 0xe3}, data},
		// movdqu xmm3, fs:[0x18]; movdqu fs:[0x28], xmm3; movq xmm3, gs:[0x18], with REX; hlt
		{"segments behind other prefixes", lockMode{}, []byte{0xf3, 0x64, 0x0f, 0x6f, 0x1c, 0x25, 0x18, 0, 0, 0, 0xf3, 0x64, 0x0f, 0x7f, 0x1c, 0x25, 0x28, 0, 0, 0,
			0xf3, 0x2e, 0x65, 0x44, 0x0f, 0x7e, 0x1c, 0x25, 0x18, 0, 0, 0, 0xf4}, data},
		{"a segment behind another, with VEX", lockMode{}, []byte{0x2e, 0x64, 0xc5, 0xfa, 0x6f, 0x1c, 0x25, 0x18, 0, 0, 0, 0xf4}, data},
		{"a segment behind REX", lockMode{}, []byte{0x48, 0x64, 0x0f, 0x10, 0x1c, 0x25, 0x18, 0, 0, 0, 0xf4}, data},
		{"LOCK in front of NOP", lockMode{}, []byte{0xf0, 0x90, 0xf0, 0x0f, 0x1f, 0x00}, data},
		{"LOCK in front of a move from CR2", lockMode{}, []byte{0xf0, 0x0f, 0x20, 0xd0}, data},
		{"LOCK in front of RDFSBASE", lockMode{user: true}, []byte{0xf0, 0xf3, 0x48, 0x0f, 0xae, 0xc0}, data},
		{"LOCK in front of a move from DS", lockMode{}, []byte{0xf0, 0x8c, 0xd8}, data},
		{"LOCK in front of SWAPGS", lockMode{}, []byte{0xf0, 0x0f, 0x01, 0xf8}, data},
		{"a jump to 0", lockMode{}, []byte{0x31, 0xc0, 0xff, 0xe0}, data},
		{"a return to 0", lockMode{user: true}, []byte{0x6a, 0x00, 0xc3}, data},
		{"a jump beyond the addresses", lockMode{user: true}, []byte{0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0xff, 0xe0}, data},
		{"SYSCALL, then STAC", lockMode{user: true, smap: true}, []byte{0x0f, 0x05}, data},
		// A loop in user mode, whose system calls are translated ones from the second on.
		{"SYSCALL and STAC, again", lockMode{user: true, smap: true}, []byte{0xbb, 5, 0, 0, 0, 0x0f, 0x05, 0xff, 0xcb, 0x75, 0xfa}, data},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair := newLockPair(t)
			if err := pair.check(append(c.code, 0xf4), lockCode, c.mode, c.regs, 1); err != nil || pair.compared != 1 {
				t.Errorf("compared %d: %v", pair.compared, err)
			}
		})
	}
}
