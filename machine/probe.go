package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/kvm"
	"vmm/machine/engine"
)

// A host whose KVM interprets guest kernel mode is found by what an iteration of a
// loop in 64-bit ring 0 costs: below a nanosecond on hardware, some on an emulated
// CPU, hundreds when interpreted. Not by what a run of the loop costs, for that
// has an exit in it, which on a nested or busy host takes longer than many
// iterations anywhere.
const (
	// An iteration is two instructions.
	surelyHardware = 50 * time.Nanosecond
	betweenThem    = 100 * time.Nanosecond
	interpreted    = 200 * time.Nanosecond // at least

	probeTries  = 3 // the fastest counts: what else the host does only adds
	loopTries   = 6 // of each of probeLoops, at most
	probeCode   = 0x10000
	probeMemory = 2 << 20
)

// probeLoops are the lengths of the loops that are tried, until one is cheap enough.
// Noise, of a host that is busy or emulated, can look like interpreting in a short
// one, but does not grow with the loop; all of them take an interpreter a third of a
// second, once.
var probeLoops = []uint64{500, 8000, 32000}

// quickLoop is a loop that most hosts are known by at once.
const quickLoop = 2000

// verdict is what a probe says of the host.
type verdict int

const (
	unsure verdict = iota
	hardware
	interpreting
)

// judge decides by the times that one iteration took and that loops[i] took; more
// loops may follow.
func judge(one time.Duration, loops []uint64, took []time.Duration) verdict {
	for i, d := range took {
		n := time.Duration(loops[i])
		limit, last := surelyHardware, i == len(loops)-1
		if last {
			limit = betweenThem
		}
		// The loop as a whole must be shorter, too, than an interpreter's: one
		// iteration may just have been disturbed.
		if (d-one)/(n-1) < limit && d < n*interpreted {
			return hardware
		}
		if last {
			return interpreting
		}
	}
	return unsure
}

var probed struct {
	sync.Mutex
	done        bool
	interpreted bool
}

// interpretsRing0 probes the host, once for the process. notes is a file that keeps
// what was found out until the host boots again; "" if there is none.
func interpretsRing0(sys engine.System, notes string) (bool, error) {
	probed.Lock()
	defer probed.Unlock()
	if probed.done {
		return probed.interpreted, nil
	}
	id, err := hostID()
	if err != nil {
		notes = ""
	}
	if notes != "" {
		if v := readNote(notes, id); v != unsure {
			probed.interpreted, probed.done = v == interpreting, true
			return probed.interpreted, nil
		}
	}
	p, err := newProbe(sys)
	if err != nil {
		return false, err
	}
	// The kernel takes milliseconds to free a VM; nobody need wait for it.
	defer func() { go p.close() }()
	v, err := p.kind()
	if err != nil {
		return false, err
	}
	probed.interpreted, probed.done = v == interpreting, true
	if notes != "" {
		writeNote(notes, id, v)
	}
	return probed.interpreted, nil
}

// foundInterpreting reports whether interpretsRing0 has found that.
func foundInterpreting() bool {
	probed.Lock()
	defer probed.Unlock()
	return probed.interpreted
}

// kind finds out what kind of host this is.
func (p *probe) kind() (verdict, error) {
	// One run tells enough where exits are cheap: with its exit it takes less than
	// its iterations alone would elsewhere.
	if once, err := p.fastest(quickLoop, false, 1); err != nil || once < quickLoop*surelyHardware {
		return hardware, err
	}
	one, err := p.time(1, false)
	if err != nil {
		return unsure, err
	}
	return decide(one, func(n uint64) (time.Duration, error) { return p.fastest(n, false, 1) })
}

// decide runs loops until one was short enough for hardware. What else a host does, such as
// giving this process no more than half a CPU, may last for several of them.
func decide(one time.Duration, run func(n uint64) (time.Duration, error)) (v verdict, err error) {
	var took []time.Duration
	for i, n := range probeLoops {
		for try := range loopTries {
			d, err := run(n)
			if err != nil {
				return unsure, err
			}
			if try == 0 {
				took = append(took, d)
			}
			took[i] = min(took[i], d)
			if v = judge(one, probeLoops, took); v == hardware {
				return v, nil
			}
		}
	}
	return v, nil // which is not unsure after the last loop
}

// hostID names what a note is true of: /dev/kvm as its driver has made it, since the
// host's kernel was started.
func hostID() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	err = unix.Stat(kvm.DevicePath, &st)
	return fmt.Sprintf("%s %d %d", strings.TrimSpace(string(boot)), st.Ino, st.Ctim.Nano()), err
}

// maxNote bounds a note, in bytes.
const maxNote = 200

// noteText is what a note says, with the host's ID before it.
var noteText = map[verdict]string{hardware: " hardware\n", interpreting: " interpreting\n"}

// readNote returns what was noted of this host, as id names it.
func readNote(path, id string) verdict {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() || st.Size() > maxNote {
		return unsure
	}
	note, err := os.ReadFile(path)
	if err != nil {
		return unsure
	}
	for v, text := range noteText {
		if string(note) == id+text {
			return v
		}
	}
	return unsure
}

// writeNote is for the next process: one that cannot be written costs that a probe.
func writeNote(path, id string, v verdict) {
	f, err := os.CreateTemp(filepath.Dir(path), ".probe-")
	if err != nil {
		return
	}
	_, err = f.WriteString(id + noteText[v])
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// probe is a VM that runs a loop.
type probe struct {
	vm  engine.VM
	mem *Memory
	cpu engine.VCPU
}

func newProbe(sys engine.System) (_ *probe, err error) {
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

// Speed is how fast an engine runs a guest.
type Speed struct {
	Ring0, Ring3 float64 // million instructions per second
	Interpreted  bool    // Ring0, by KVM
	// Exit is what it costs to leave the guest and enter it again.
	Exit time.Duration
}

// MeasureSpeed measures both of the guest's modes; it takes some tens of
// milliseconds. The error is Engine.Open's, or that of an engine that does not run.
func MeasureSpeed(e Engine) (speed Speed, err error) {
	sys, e, err := e.Open("")
	if err != nil {
		return speed, err
	}
	defer sys.Close()
	if e == KVMEngine {
		if speed.Interpreted, err = interpretsRing0(sys, ""); err != nil {
			return speed, err
		}
	}
	p, err := newProbe(sys)
	if err != nil {
		return speed, err
	}
	defer p.close()
	loops0, loops3 := uint64(20e6), uint64(20e6)
	switch {
	case speed.Interpreted:
		loops0 = 20e3
	case e == SoftwareEngine:
		loops0, loops3 = 500e3, 500e3
	}
	if speed.Ring0, _, err = p.speed(loops0, false); err == nil {
		speed.Ring3, speed.Exit, err = p.speed(loops3, true)
	}
	return speed, err
}

// speed returns the million instructions a second of a loop, and what an exit costs.
func (p *probe) speed(n uint64, ring3 bool) (mips float64, exit time.Duration, err error) {
	one, err := p.time(1, ring3)
	if err != nil {
		return 0, 0, err
	}
	all, err := p.time(n, ring3)
	return 2 * float64(n) / float64(max(all-one, 1)) * 1e3, one, err
}

// time measures a loop of n iterations of two instructions in guest
// kernel or user mode.
func (p *probe) time(n uint64, ring3 bool) (time.Duration, error) {
	return p.fastest(n, ring3, probeTries)
}

// fastest is the shortest of some runs of a loop.
func (p *probe) fastest(n uint64, ring3 bool, tries int) (d time.Duration, err error) {
	e, err := p.enter(ring3)
	if err != nil {
		return 0, err
	}
	if _, err := p.run(e, 1); err != nil { // brings the pages in
		return 0, err
	}
	for range tries {
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
		err = errors.New("the guest ended with exit " + p.cpu.Shared().ExitReason.String())
	}
	if err != nil {
		return 0, fmt.Errorf("probing the speed of guests: %w", err)
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
