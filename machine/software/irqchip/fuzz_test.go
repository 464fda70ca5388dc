package irqchip

import (
	"encoding/binary"
	"slices"
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// ports are those that the guest in FuzzGuest knows.
var ports = []uint16{0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61}

// FuzzGuest does what a guest can do to its chips, seven bytes a step. Nothing of it may panic
// or hang, and the registers stay what they can be.
func FuzzGuest(f *testing.F) {
	f.Add([]byte("\x00\x00\x11\x00\x00\x00\x00\x02\x03\x34\x12\x00\x00\x00\x13\x30\x40\x00\x04\x00\x80"))
	f.Add([]byte("\x04\x83\xff\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x06\x00\x51\x40\x08\x00\x00\x07\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		chips, apics := newTestChips(t, 3)
		l := apics[0]
		for ; len(data) >= 7; data = data[7:] {
			op, at, v := data[0], data[1], binary.LittleEndian.Uint32(data[2:])
			size := 1 << (data[6] & 3)
			write := data[6]&4 == 0
			b := make([]byte, size)
			binary.LittleEndian.PutUint32(append(b, 0, 0, 0), v)
			switch op % 10 {
			case 0, 1:
				chips.Port(ports[int(at)%len(ports)], b, write)
			case 2:
				chips.MMIO(ioapicBase+uint64(at), b, write)
			case 3:
				chips.ioapicWrite(uint32(at), v)
			case 4:
				l.MMIO(uint32(at)<<4|uint32(data[6]>>4), b, write)
			case 5:
				l.WriteMSR(x86.MSRX2APIC+uint32(at), uint64(v)|uint64(data[6])<<32)
				l.ReadMSR(x86.MSRX2APIC + uint32(at))
				l.WriteMSR(x86.MSRTSCDeadline, uint64(v)<<(data[6]%33))
			case 6:
				chips.SetLine(uint32(at), v&1 != 0)
				chips.Signal(v % 32)
				chips.SignalMSI(kvm.MSI{AddressLo: v, Data: uint32(at) | uint32(data[6])<<8})
			case 7:
				l = apics[int(at)%len(apics)]
				l.SetBase(uint64(v))
				l.SetCR8(uint64(v))
			case 8:
				l.TakeINIT()
				l.TakeNMI()
				l.TakeSIPI()
				l.Interrupt()
			case 9:
				fuzzState(t, chips, l, data)
			}
			if _, ok := l.deliverable(); ok && l.Wanted()&WantInterrupt == 0 {
				t.Fatalf("an interrupt is not told of after %x", data[:7])
			}
		}
	})
}

// fuzzState makes the chips what a damaged snapshot says.
func fuzzState(t *testing.T, chips *Chips, l *LAPIC, data []byte) {
	s := kvm.IRQChip{ChipID: uint32(data[1] % 4)}
	copy(s.State[:], data)
	chips.SetChip(&s)
	var p kvm.PITState2
	if _, err := binary.Decode(slices.Concat(data, make([]byte, 200)), binary.LittleEndian, &p.Channels); err != nil {
		t.Fatal(err)
	}
	chips.SetPIT(&p)
	a := l.State()
	copy(a.Regs[0x80:], data)
	if err := l.SetState(&a); err != nil {
		t.Fatal(err)
	}
}
