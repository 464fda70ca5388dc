package ring0

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"vmm/kvm"
)

// Trial is what one instruction would do.
type Trial struct {
	Regs  kvm.Regs
	Sregs kvm.Sregs
	pages []trialPage
	code  []byte
}

type trialPage struct {
	host          *[pageSize]byte
	before, after [pageSize]byte
}

// Try executes the instruction at RIP and takes it back, so that KVM can do
// the same and Check compare: it is how tests hold this package to KVM. It
// reports false where the instruction would be handed over.
func (c *CPU) Try() (*Trial, bool) {
	t := &Trial{code: c.Code()}
	r, base, sregs := c.r, c.base, c.sregs
	flags, gs := c.flags(), c.kernelGSBase
	c.FlushTLB()
	c.journal = t
	_, stop := c.Execute(1, false, &atomic.Bool{})
	c.journal = nil
	ok := stop == StopBudget
	c.Store(&t.Regs, &t.Sregs)
	for i := range t.pages {
		p := &t.pages[i]
		p.after = *p.host
		*p.host = p.before
	}
	c.r, c.base, c.sregs, c.kernelGSBase = r, base, sregs, gs
	c.setFlags(flags)
	c.blocked, c.sregsDirty = 0, false
	return t, ok
}

func (t *Trial) note(p unsafe.Pointer) {
	page := (*[pageSize]byte)(p)
	for i := range t.pages {
		if t.pages[i].host == page {
			return
		}
	}
	t.pages = append(t.pages, trialPage{host: page, before: *page})
}

// Repeats reports whether the instruction is a repeated one, of which KVM and
// this package do different amounts at once.
func (t *Trial) Repeats() bool {
	var in inst
	return decode(t.code, &in) && in.rep != repNone && in.count
}

// undefined returns the flags that the instruction leaves undefined.
func (t *Trial) undefined() uint64 {
	var in inst
	decode(t.code, &in)
	return uint64(in.undefined)
}

// Check compares with what KVM made of the same instruction.
func (t *Trial) Check(regs *kvm.Regs, sregs *kvm.Sregs) error {
	got, want := t.Regs, *regs
	ignore := uint64(flagRF) | t.undefined()
	got.RFLAGS &^= ignore
	want.RFLAGS &^= ignore
	if got != want {
		return fmt.Errorf("% x:\n got %x\nwant %x", t.code, got, want)
	}
	if t.Sregs.FS.Base != sregs.FS.Base || t.Sregs.GS.Base != sregs.GS.Base {
		return fmt.Errorf("% x: bases of FS and GS: %#x %#x, want %#x %#x", t.code,
			t.Sregs.FS.Base, t.Sregs.GS.Base, sregs.FS.Base, sregs.GS.Base)
	}
	for i := range t.pages {
		for j, v := range t.pages[i].after {
			if w := t.pages[i].host[j]; v != w {
				return fmt.Errorf("% x: memory at page offset %#x: %#x, want %#x", t.code, j, v, w)
			}
		}
	}
	return nil
}
