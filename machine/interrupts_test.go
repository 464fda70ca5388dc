package machine

import (
	"testing"

	"vmm/kvm"
)

// TestTakesEdges: a guest has no event before it has set up a chip for it.
func TestTakesEdges(t *testing.T) {
	for _, c := range []struct {
		name    string
		base    byte // of the slave 8259A's vectors
		masked  bool // in the I/O APIC
		another bool // pin is not masked
		want    bool
	}{
		{"nothing is set up", 0, true, false, false},
		{"another pin of the I/O APIC's", 0, true, true, false},
		{"the I/O APIC", 0, false, false, true},
		{"the 8259A", 0x28, true, false, true},
		{"the 8259A as a PC's firmware leaves it", 0x70, true, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var slave, ioapic kvm.IRQChip
			slave.State[5] = c.base
			for pin := range ioapicPins {
				if pin == irqGeneration && c.masked || pin != irqGeneration && !c.another {
					ioapic.State[24+8*pin+2] = 1
				}
			}
			if got := takesEdges(&slave, &ioapic, irqGeneration); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
