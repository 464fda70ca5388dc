package machine

import (
	"context"
	"os"
	"testing"

	"vmm/bootloader"
	guestimages "vmm/guest-images"
	"vmm/kvm"
)

// TestLockstep boots the slim kernel with every instruction executed by the
// executor and by KVM, and wants the same registers and memory. It is for
// hosts that need the executor.
func TestLockstep(t *testing.T) {
	needKVM(t)
	slim, err := (&guestimages.Builder{Log: os.Stderr}).SlimKernel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	k, err := bootloader.Open(slim.Image)
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Kernel: k, Memory: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.Interpreted() {
		t.Skip("this host runs guest kernel mode on hardware")
	}
	instructions := 400000
	if testing.Short() {
		instructions = 50000
	}
	in, compared := m.cpus[0].in, 0
	for range instructions {
		if compareOne(t, in) {
			compared++
		} else if err := in.run(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d of %d steps compared", compared, instructions)
	if compared < instructions*9/10 {
		t.Errorf("only %d of %d steps could be compared", compared, instructions)
	}
}

// compareOne executes one instruction both ways. It reports false, with
// nothing done, where that is not possible.
func compareOne(t *testing.T, in *interpreter) bool {
	if in.delivering() || !in.cpu.CanExecute() {
		return false
	}
	code := in.cpu.Code()
	if len(code) < 4 || code[0] == 0x0f && code[1] == 0x31 || code[0] == 0x48 && code[1] == 0xcf {
		return false // the time goes on; an IRET is stepped together with what follows it
	}
	if code[0] == 0xf3 && (code[1]&0xf0 == 0x40 && code[2] == 0x0f && code[3]&0xfe == 0xbc || code[1] == 0x0f && code[2]&0xfe == 0xbc) {
		return false // KVM's interpreter takes TZCNT for BSF
	}
	trial, ok := in.cpu.Try()
	if !ok || trial.Repeats() {
		return false
	}
	rip := in.cpu.RIP()
	in.changed = true
	if err := in.enter(); err != nil {
		return true // interrupted: nothing can be said
	}
	if in.shared.ExitReason != kvm.ExitDebug {
		if err := in.after(nil); err != nil {
			t.Error(err)
		}
		return true // KVM does not know it; or an interrupt came in between
	}
	if err := trial.Check(&in.shared.Regs, &in.shared.Sregs); err != nil {
		t.Errorf("at %#x: %v", rip, err)
	}
	return true
}
