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
// 64-bit loop of probeLoops iterations in ring 0 takes less than a microsecond
// on hardware, beside some for the exit, and hundreds when interpreted.
const (
	probeLoops  = 500
	probeLimit  = 50 * time.Microsecond
	probeTries  = 3 // a busy host can make hardware look slow, so the fastest counts
	probeCode   = 0x10000
	probeMemory = 2 << 20
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
	p, err := newProbe(sys)
	if err != nil {
		return false, err
	}
	// The kernel takes milliseconds to free a VM; nobody need wait for it.
	defer func() { go p.close() }()
	d, err := p.time(probeLoops, false)
	if err != nil {
		return false, err
	}
	probed.interpreted, probed.done = d > probeLimit, true
	return probed.interpreted, nil
}

// probe is a VM that runs a loop.
type probe struct {
	vm  *kvm.VM
	mem *Memory
	cpu *kvm.VCPU
}

func newProbe(sys *kvm.System) (_ *probe, err error) {
	p := &probe{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.vm, err = sys.CreateVM(); err != nil {
		return nil, err
	}
	if err = p.vm.SetIdentityMapAddr(identityPg); err != nil {
		return nil, err
	}
	if err = p.vm.SetTSSAddr(tssPages); err != nil {
		return nil, err
	}
	if p.mem, err = newMemory(probeMemory, false); err != nil {
		return nil, err
	}
	if err = p.mem.register(p.vm); err != nil {
		return nil, err
	}
	p.cpu, err = p.vm.CreateVCPU(0)
	return p, err
}

func (p *probe) close() error {
	var errs []error
	if p.cpu != nil {
		errs = append(errs, p.cpu.Close())
	}
	if p.vm != nil {
		errs = append(errs, p.vm.Close())
	}
	if p.mem != nil {
		errs = append(errs, p.mem.close())
	}
	return errors.Join(errs...)
}

// Speed is how fast KVM runs a guest, in million instructions per second.
type Speed struct {
	Ring0, Ring3 float64
	Interpreted  bool
}

// MeasureSpeed measures both of the guest's modes; it takes some tens of
// milliseconds.
func MeasureSpeed(sys *kvm.System) (speed Speed, err error) {
	if speed.Interpreted, err = interpretsRing0(sys); err != nil {
		return speed, err
	}
	p, err := newProbe(sys)
	if err != nil {
		return speed, err
	}
	defer p.close()
	mips := func(n uint64, ring3 bool) float64 {
		var d time.Duration
		if err == nil {
			d, err = p.time(n, ring3)
		}
		return 2 * float64(n) / float64(max(d, 1)) * 1e3
	}
	loops0 := uint64(20e6)
	if speed.Interpreted {
		loops0 = 20e3
	}
	speed.Ring0 = mips(loops0, false)
	speed.Ring3 = mips(20e6, true)
	return speed, err
}

// time measures a loop of n iterations of two instructions in guest
// kernel or user mode.
func (p *probe) time(n uint64, ring3 bool) (d time.Duration, err error) {
	e, err := p.enter(ring3)
	if err != nil {
		return 0, err
	}
	if _, err := p.run(e, 1); err != nil { // brings the pages in
		return 0, err
	}
	for range probeTries {
		once, err := p.run(e, n)
		if err != nil {
			return 0, err
		}
		if d == 0 || once < d {
			d = once
		}
	}
	return d, nil
}

// run runs the loop once.
func (p *probe) run(e *bootloader.Entry, n uint64) (time.Duration, error) {
	regs := e.Regs
	regs.RCX, regs.RDI = n, pciWindow // where nothing is: the write ends the run
	if err := p.cpu.SetRegs(&regs); err != nil {
		return 0, err
	}
	start := time.Now()
	err := p.cpu.Run()
	for err != nil && interruptedRun(err) {
		err = p.cpu.Run()
	}
	d := time.Since(start)
	if err == nil && p.cpu.Shared().ExitReason != kvm.ExitMMIO {
		err = errors.New("the guest ended with KVM exit " + p.cpu.Shared().ExitReason.String())
	}
	if err != nil {
		return 0, fmt.Errorf("probing the speed of KVM: %w", err)
	}
	// KVM completes the write, so that the next run starts afresh.
	p.cpu.Shared().SetImmediateExit(true)
	defer p.cpu.Shared().SetImmediateExit(false)
	if err := p.cpu.Run(); err != nil && !interruptedRun(err) {
		return 0, err
	}
	return d, nil
}

// enter puts the loop into memory and the CPU in front of it.
func (p *probe) enter(ring3 bool) (*bootloader.Entry, error) {
	code, err := p.mem.Slice(probeCode, 16)
	if err != nil {
		return nil, err
	}
	copy(code, []byte{0x48, 0xff, 0xc9, 0x75, 0xfb, 0x88, 0x07}) // dec rcx; jnz; mov [rdi], al
	e, err := bootloader.LongMode(p.mem, probeCode, ring3)
	if err != nil {
		return nil, err
	}
	s, err := p.cpu.Sregs()
	if err != nil {
		return nil, err
	}
	e.Apply(&s)
	if ring3 {
		toUserMode(&s)
	}
	return e, p.cpu.SetSregs(&s)
}

// toUserMode makes flat segments those of privilege level 3.
func toUserMode(s *kvm.Sregs) {
	for _, seg := range []*kvm.Segment{&s.CS, &s.SS, &s.DS, &s.ES, &s.FS, &s.GS} {
		seg.DPL, seg.Selector = 3, seg.Selector|3
	}
}
