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
		d, err := timeLoop(sys, probeLoops, false)
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

// Speed is how fast KVM runs a guest, in million instructions per second.
type Speed struct {
	Ring0, Ring3 float64
	Interpreted  bool
}

// MeasureSpeed measures both of the guest's modes; it takes some tens of
// milliseconds.
func MeasureSpeed(sys *kvm.System) (Speed, error) {
	interpreted, err := interpretsRing0(sys)
	if err != nil {
		return Speed{}, err
	}
	mips := func(n uint64, ring3 bool) float64 {
		var d time.Duration
		if err == nil {
			d, err = timeLoop(sys, n, ring3)
		}
		return 2 * float64(n) / float64(max(d, 1)) * 1e3
	}
	loops0 := uint64(20e6)
	if interpreted {
		loops0 = 20e3
	}
	return Speed{mips(loops0, false), mips(20e6, true), interpreted}, err
}

// timeLoop measures a loop of n iterations of two instructions in guest
// kernel or user mode.
func timeLoop(sys *kvm.System, n uint64, ring3 bool) (d time.Duration, err error) {
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
	if err := enterProbe(v, mem, n, ring3); err != nil {
		return 0, err
	}
	start := time.Now()
	for {
		if err = v.Run(); err == nil || !interruptedRun(err) {
			break
		}
	}
	d = time.Since(start)
	if err == nil && v.Shared().ExitReason != kvm.ExitMMIO {
		err = errors.New("the probe's guest ended with KVM exit " + v.Shared().ExitReason.String())
	}
	if err != nil {
		return 0, fmt.Errorf("probing the speed of KVM: %w", err)
	}
	return d, nil
}

// enterProbe puts the loop into memory and the CPU in front of it.
func enterProbe(v *kvm.VCPU, mem *Memory, n uint64, ring3 bool) error {
	code, err := mem.Slice(probeCode, 16)
	if err != nil {
		return err
	}
	copy(code, []byte{0x48, 0xff, 0xc9, 0x75, 0xfb, 0x88, 0x07}) // dec rcx; jnz; mov [rdi], al
	e, err := bootloader.LongMode(mem, probeCode, ring3)
	if err != nil {
		return err
	}
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	e.Apply(&s)
	if ring3 {
		toUserMode(&s)
	}
	if err := v.SetSregs(&s); err != nil {
		return err
	}
	e.Regs.RCX, e.Regs.RDI = n, pciWindow // where nothing is: the write ends the run
	return v.SetRegs(&e.Regs)
}

// toUserMode makes flat segments those of privilege level 3.
func toUserMode(s *kvm.Sregs) {
	for _, seg := range []*kvm.Segment{&s.CS, &s.SS, &s.DS, &s.ES, &s.FS, &s.GS} {
		seg.DPL, seg.Selector = 3, seg.Selector|3
	}
}
