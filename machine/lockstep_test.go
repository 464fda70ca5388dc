package machine

import (
	"os"
	"testing"

	"vmm/bootloader"
	"vmm/kvm"
)

func TestLockstep(t *testing.T) {
	k, err := bootloader.Open(os.Getenv("K"))
	if err != nil {
		t.Skip(err)
	}
	m, err := New(Config{Kernel: k, Console: os.Stdout, Memory: 256 << 20, Cmdline: os.Getenv("A")})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	in := m.cpus[0].in
	bad, n := 0, 0
	for i := 0; i < 3000000 && bad < 20; i++ {
		if !in.cpu.CanExecute() {
			if err := in.run(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		trial, ok := in.cpu.Try()
		rip := in.cpu.RIP()
		if !ok {
			if err := in.run(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if c := in.cpu.Code(); trial.Repeats() || c[1] == 0xcf {
			if err := in.run(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		in.changed = true
		if err := in.enter(); err != nil {
			if interruptedRun(err) {
				continue
			}
			t.Fatal(err)
		}
		if in.shared.ExitReason != kvm.ExitDebug {
			// KVM can't: do ours
			t.Logf("kvm exit %v at %x", in.shared.ExitReason, rip)
			if err := in.run(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		n++
		if err := trial.Check(&in.shared.Regs, &in.shared.Sregs); err != nil {
			t.Errorf("%d %x: %v", i, rip, err)
			bad++
		}
	}
	t.Log(n)
}
