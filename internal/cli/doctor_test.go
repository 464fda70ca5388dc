package cli

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"vmm/machine"
)

// TestHostKinds describes hosts by what their kernels tell, and by measurements.
func TestHostKinds(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s + "\n")} }
	const nested = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu hypervisor lm\n"
	for _, c := range []struct {
		name  string
		files fstest.MapFS
		speed machine.Speed
		kind  string
		slow  []string // parts of what is said, one for each
	}{
		{"a server with Intel's", fstest.MapFS{"sys/module/kvm_intel/parameters/ept": file("Y"), "proc/cpuinfo": file("flags\t: fpu vmx lm"),
			"sys/devices/system/clocksource/clocksource0/current_clocksource": file("tsc"), "sys/kernel/mm/transparent_hugepage/enabled": file("always [madvise] never")},
			machine.Speed{Exit: time.Microsecond}, "VMX (kvm_intel)", nil},
		{"AMD in a cloud", fstest.MapFS{"sys/module/kvm_amd/parameters/npt": file("1"), "proc/cpuinfo": file(nested)},
			machine.Speed{Exit: 22 * time.Microsecond}, "SVM (kvm_amd), nested: this host is a virtual machine", []string{"an exit takes 22µs: each is one of the outer host's"}},
		{"without EPT", fstest.MapFS{"sys/module/kvm_intel/parameters/ept": file("N"), "sys/module/kvm_intel/parameters/unrestricted_guest": file("N")},
			machine.Speed{Exit: 2 * time.Microsecond}, "VMX (kvm_intel)", []string{"no EPT", "no unrestricted guest"}},
		{"a busy host", fstest.MapFS{"sys/module/kvm_amd/parameters/npt": file("Y"), "proc/cpuinfo": file("flags\t: fpu svm"), "sys/kernel/mm/transparent_hugepage/enabled": file("always madvise [never]"),
			"sys/devices/system/clocksource/clocksource0/current_clocksource": file("hpet")},
			machine.Speed{Exit: 40 * time.Microsecond}, "SVM (kvm_amd)", []string{"busy", "huge pages are off", "hpet"}},
		{"a container that sees nothing", fstest.MapFS{}, machine.Speed{Exit: time.Microsecond}, "hardware virtualization", nil},
		{"interpreting", fstest.MapFS{"proc/cpuinfo": file(nested)}, machine.Speed{Interpreted: true, Exit: 30 * time.Microsecond}, "KVM interprets guest kernel mode", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := readHost(c.files)
			if got := h.kind(c.speed.Interpreted); got != c.kind {
				t.Errorf("kind %q, want %q", got, c.kind)
			}
			got := h.slow(c.speed)
			if len(got) != len(c.slow) {
				t.Fatalf("slow: %q, want %q", got, c.slow)
			}
			for i, want := range c.slow {
				if !strings.Contains(got[i], want) {
					t.Errorf("slow: %q, want %q", got[i], want)
				}
			}
		})
	}
}
