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
		// mov rax, ...; mov [rbx+5], rax; ...; cmpxchg8b [rbx+5]; pushf; hlt
		{"cmpxchg8b that is not aligned", lockMode{}, []byte{0x89, 0x43, 0x05, 0x89, 0x53, 0x09, 0xf0, 0x0f, 0xc7, 0x4b, 0x05, 0x9c, 0xf4}, with(func(r *kvm.Regs) { r.RAX, r.RDX = 0x11223344, 0x55667788 })},
		{"cmpxchg8b across pages", lockMode{}, []byte{0x89, 0x43, 0x05, 0x89, 0x53, 0x09, 0x0f, 0xc7, 0x4b, 0x05, 0x9c, 0xf4}, with(func(r *kvm.Regs) { r.RAX, r.RDX, r.RBX = 0x11223344, 0x55667788, lockData+0xff7 })},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair := newLockPair(t)
			if err := pair.check(append(c.code, 0xf4), lockCode, c.mode, c.regs, 1); err != nil || pair.compared != 1 {
				t.Errorf("compared %d: %v", pair.compared, err)
			}
		})
	}
}
