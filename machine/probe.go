package machine

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"vmm/bootloader"
	"vmm/kvm"
)

// A host whose KVM interprets guest kernel mode is found by its speed: a
// 64-bit loop of probeLoops iterations in ring 0 takes some microseconds on
// hardware and tens of milliseconds when interpreted.
const (
	probeLoops  = 5000
	probeLimit  = 1 * time.Millisecond
	probeCode   = 0x10000
	probeMemory = 64 << 20
	probePort   = 0x10
)

var probed struct {
	sync.Mutex
	done        bool
	interpreted bool
}

// interpretsRing0 probes the host, once for the process.
func interpretsRing0(sys *kvm.System) (bool, error) {
	probed.Lock()
	defer probed.Unlock()
	if probed.done {
		return probed.interpreted, nil
	}
	// A busy host can make hardware look slow, never the other way round: so
	// the fastest of several counts, and the first fast one is enough.
	for range 3 {
		d, err := TimeRing0(sys, probeLoops)
		if err != nil {
			return false, err
		}
		if probed.interpreted = d > probeLimit; !probed.interpreted {
			break
		}
	}
	probed.done = true
	return probed.interpreted, nil
}

// TimeRing0 measures a loop of n iterations of two instructions in guest
// kernel mode.
func TimeRing0(sys *kvm.System, n uint32) (time.Duration, error) {
	vm, err := sys.CreateVM()
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	if err := vm.SetIdentityMapAddr(identityPg); err != nil {
		return 0, err
	}
	if err := vm.SetTSSAddr(tssPages); err != nil {
		return 0, err
	}
	mem, err := newMemory(probeMemory, false)
	if err != nil {
		return 0, err
	}
	defer mem.close()
	if err := mem.register(vm); err != nil {
		return 0, err
	}
	v, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	code, err := mem.Slice(probeCode, 16)
	if err != nil {
		return 0, err
	}
	copy(code, []byte{0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, probePort}) // dec rcx; jnz; out
	e, err := bootloader.LongMode(mem, probeCode)
	if err != nil {
		return 0, err
	}
	s, err := v.Sregs()
	if err != nil {
		return 0, err
	}
	e.Apply(&s)
	if err := v.SetSregs(&s); err != nil {
		return 0, err
	}
	e.Regs.RCX = uint64(n)
	if err := v.SetRegs(&e.Regs); err != nil {
		return 0, err
	}
	start := time.Now()
	for {
		if err = v.Run(); err == nil || !interruptedRun(err) {
			break
		}
	}
	d := time.Since(start)
	if err == nil && v.Shared().ExitReason != kvm.ExitIO {
		err = errors.New("the probe's guest ended with KVM exit " + v.Shared().ExitReason.String())
	}
	if err != nil {
		return 0, fmt.Errorf("probing guest kernel mode: %w", err)
	}
	return d, nil
}
