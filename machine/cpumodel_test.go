package machine

import (
	"slices"
	"testing"

	"vmm/kvm"
)

func TestCPUModels(t *testing.T) {
	const all = ^uint32(0)
	var host []kvm.CPUIDEntry
	for _, l := range []struct{ leaf, subs uint32 }{{0, 1}, {1, 1}, {2, 1}, {4, 4}, {5, 1}, {6, 1}, {7, 2}, {0xa, 1}, {0xb, 2}, {0xd, 10}, {0x14, 1}, {0x40000000, 1}, {0x40000001, 1},
		{0x80000000, 1}, {0x80000001, 1}, {0x80000002, 1}, {0x80000007, 1}, {0x80000008, 1}, {0x8000000a, 1}, {0x8000001e, 1}, {0x80000022, 1}} {
		for sub := range l.subs {
			host = append(host, kvm.CPUIDEntry{Function: l.leaf, Index: sub, EAX: all, EBX: all, ECX: all, EDX: all})
		}
	}
	before := slices.Clone(host)
	for _, m := range []CPUModel{"", HostCPU} {
		if got := m.restrict(host); !slices.Equal(got, host) {
			t.Errorf("%q changes what the host has", m)
		}
	}
	for m, want := range map[CPUModel]map[[2]uint32][4]uint32{
		X86V2: {{0, 0}: {0xd, all, all, all}, {1, 0}: {all, all, 0x81b82201, 0x178bbb7d}, {5, 0}: {}, {7, 0}: {}, {7, 1}: {}, {0xa, 0}: {}, {0xd, 0}: {}, {0xd, 1}: {}, {0x14, 0}: {},
			{0x40000001, 0}: {0: 1<<0 | 1<<3 | 1<<24}, {0x80000000, 0}: {0x80000008, all, all, all}, {0x80000001, 0}: {2: 1, 3: 0x20100800}, {0x8000000a, 0}: {}, {0x80000022, 0}: {}},
		X86V3: {{1, 0}: {all, all, 0xb5f83201, 0x178bbb7d}, {7, 0}: {1: 0x3a9}, {7, 1}: {}, {0xd, 0}: {7, 832, 832, 0}, {0xd, 1}: {0: 1}, {0xd, 2}: {all, all, all, all}, {0xd, 5}: {},
			{0x80000001, 0}: {2: 0x21, 3: 0x28100800}},
	} {
		got := m.restrict(host)
		for l, bits := range want {
			if have := leaf(got, l[0], l[1]); have != bits {
				t.Errorf("%s, leaf %#x.%d: %#x, want %#x", m, l[0], l[1], have, bits)
			}
		}
	}
	if !slices.Equal(host, before) {
		t.Error("the host's list was changed")
	}
}

func TestOfferedMSRs(t *testing.T) {
	ids := []kvm.CPUIDEntry{{Function: 1, EDX: 1 << 14}, {Function: 7, EBX: 1 << 1}}
	for msr, want := range map[uint32]bool{0x10: true, 0x3b: true, 0x10a: false, 0x17a: true, 0x401: true, 0xc0000104: false, 0x4b564d05: false} {
		if got := offers(ids, msr); got != want {
			t.Errorf("MSR %#x: %v", msr, got)
		}
	}
	for _, msr := range []uint32{0x3b, 0x17a, 0x401} {
		if offers(nil, msr) {
			t.Errorf("MSR %#x is offered by nothing", msr)
		}
	}
}
