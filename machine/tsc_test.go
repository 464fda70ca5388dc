package machine

import (
	"testing"

	"vmm/internal/x86"
	"vmm/kvm"
)

// TestTSCOffset has the guest's TSC, as the executor reads it, nowhere behind the one
// that KVM reckons with: a guest's clock that looked back by one tick was centuries ahead.
func TestTSCOffset(t *testing.T) {
	needKVM(t)
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for i := range uint64(200) {
		if err := v.SetMSR(x86.MSRTSC, i<<32); err != nil {
			t.Fatal(err)
		}
		measured, err := measureTSCOffset(v)
		if err != nil {
			t.Fatal(err)
		}
		if told, err := v.TSCOffset(); err == nil && int64(measured-told) < 0 {
			t.Fatalf("measured %d, KVM says %d", int64(measured), int64(told))
		} else if err == nil {
			before := x86.RDTSC() + told
			now, err := v.MSR(x86.MSRTSC)
			if after := x86.RDTSC() + told; err != nil || now < before || now > after {
				t.Fatalf("TSC %#x (%v), which is not from %#x to %#x", now, err, before, after)
			}
		} else if i == 0 {
			t.Logf("this KVM does not tell its offset: %v", err)
		}
		if now, err := v.MSR(x86.MSRTSC); err != nil || now > x86.RDTSC()+measured {
			t.Fatalf("TSC %#x (%v), of which the measured one is behind", now, err)
		}
	}
}
