package machine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
	"vmm/kvm"
)

// MSRs of Hyper-V's (Top Level Functional Specification, appendix C).
const firstHyperV, lastHyperV = 0x40000000, 0x400001ff

// settle has KVM finish the instruction whose exit was served last: its result
// is not in the registers before. The vCPU's own goroutine calls it at the gate.
func (v *vcpu) settle() error {
	if v.in != nil {
		return v.in.settle()
	}
	defer v.attention.hold()()
	for {
		err := v.engine.Run()
		if err != nil && interruptedRun(err) {
			return nil
		}
		if err == nil {
			err = v.handleExit() // a further part of a string instruction
		}
		if err != nil {
			return err
		}
	}
}

// settle is vcpu.settle where kernel mode is interpreted: there, what kernel mode
// does is complete at once.
func (in *interpreter) settle() error {
	if !in.entered || !in.cpu.User() || in.changed {
		return nil
	}
	return in.complete()
}

// save returns the vCPU's state; it stands at the gate.
func (v *vcpu) save(indices []uint32) (*CPUState, error) {
	s := &CPUState{CPUID: slices.Clone(v.cpuid), XSave: make([]byte, v.engine.XSaveSize())}
	if v.in != nil {
		if err := v.in.flush(); err != nil {
			return nil, err
		}
	}
	var errs [8]error
	s.Features, errs[0] = v.engine.CPUID()
	s.Regs, errs[1] = v.engine.Regs()
	s.Sregs, errs[2] = v.engine.Sregs()
	s.Events, errs[3] = v.engine.Events()
	if v.in != nil && v.in.entered { // KVM takes these with the next entry
		s.Regs, s.Sregs, s.Events = v.in.shared.Regs, v.in.shared.Sregs, v.in.shared.Events
	}
	errs[4] = v.engine.XSave(s.XSave)
	lapic, err := v.engine.LAPIC()
	errs[5], s.LAPIC = err, lapic.Regs[:]
	mp, err := v.engine.MPState()
	errs[6], s.MPState = err, mp.State
	s.DebugRegs, errs[7] = v.engine.DebugRegs()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if v.m.engine.Has(kvm.CapXCRS) {
		xcrs, err := v.engine.XCRs()
		if err != nil {
			return nil, err
		}
		s.XCRs = xcrs.XCR[:min(int(xcrs.Count), len(xcrs.XCR))]
	}
	if offersNested(v.cpuid) {
		if s.Nested, err = v.engine.NestedState(); err != nil {
			return nil, fmt.Errorf("this host's KVM cannot save the VMs that the guest has of its own: %w", err)
		}
	}
	s.MSRs, err = v.saveMSRs(indices)
	return s, err
}

// saveMSRs reads those MSRs that can be read, but for Hyper-V's, which KVM lists and no guest is
// offered: one is a clock.
func (v *vcpu) saveMSRs(indices []uint32) ([]kvm.MSREntry, error) {
	list := make([]kvm.MSREntry, 0, len(indices))
	for _, n := range indices {
		if n < firstHyperV || n > lastHyperV {
			list = append(list, kvm.MSREntry{Index: n})
		}
	}
	var out []kvm.MSREntry
	for len(list) > 0 {
		n, err := v.engine.SomeMSRs(list)
		if err != nil {
			return nil, err
		}
		out = append(out, list[:n]...)
		list = list[min(n+1, len(list)):] // without the one that could not be
	}
	return out, nil
}

// offeredMSRs are MSRs that a guest has where a bit of CPUID says so (SDM 4, 2.1). KVM has them for all.
var offeredMSRs = []struct {
	first, last uint32
	leaf, reg   uint32 // subleaf 0; EAX is 0
	bit         uint
}{
	{x86.MSRTSCAdjust, x86.MSRTSCAdjust, 7, 1, 1},
	{x86.MSRArchCap, x86.MSRArchCap, 7, 3, 29},
	{x86.MSRMCGCap, x86.MSRMCGCtl, 1, 3, 14},
	{0x280, 0x29f, 1, 3, 14}, // IA32_MC0_CTL2 on
	{0x400, 0x47f, 1, 3, 14}, // IA32_MC0_CTL on
	{x86.MSRTSCRatio, x86.MSRTSCRatio, cpuidSVM, 3, 4},
	{x86.MSRKVMPollControl, x86.MSRKVMPollControl, cpuidKVMFeatures, 0, 12},
}

// hostsMSRs are as well what the host has made them: how the CPU decodes, what it says of its speed and of
// CPUID faulting, and where a firmware's code is, of which there is none.
var hostsMSRs = []uint32{x86.MSRDEConfig, x86.MSRPlatformInfo, x86.MSRSMBase}

// offers reports whether a guest with these leaves has an MSR, as far as offeredMSRs tells.
func offers(ids []kvm.CPUIDEntry, msr uint32) bool {
	for _, o := range offeredMSRs {
		if msr >= o.first && msr <= o.last {
			return leaf(ids, o.leaf, 0)[o.reg]>>o.bit&1 != 0
		}
	}
	return true
}

// loadMSRs writes MSRs. One that cannot be written is no loss if it has the value
// already, or none, or the guest is not told of it, or it is one of hostsMSRs.
func (v *vcpu) loadMSRs(list []kvm.MSREntry) error {
	var lost []string
	for len(list) > 0 {
		n, err := v.engine.SetSomeMSRs(list)
		if err != nil {
			return err
		}
		if n == len(list) {
			break
		}
		if m := list[n]; m.Data != 0 && !slices.Contains(hostsMSRs, m.Index) && offers(v.cpuid, m.Index) {
			if now, err := v.engine.MSR(m.Index); err != nil || now != m.Data {
				lost = append(lost, fmt.Sprintf("%#x for MSR %#x", m.Data, m.Index))
			}
		}
		list = list[n+1:]
	}
	if lost != nil {
		return fmt.Errorf("the engine does not take the value %s", strings.Join(lost, ", "))
	}
	return nil
}

// alignTSC gives all vCPUs the TSC of the first, if they were the same but for the
// time that reading them takes: KVM then keeps them so.
func alignTSC(cpus []CPUState) {
	tsc := func(c *CPUState) *uint64 {
		if i := slices.IndexFunc(c.MSRs, func(m kvm.MSREntry) bool { return m.Index == x86.MSRTSC }); i >= 0 {
			return &c.MSRs[i].Data
		}
		return nil
	}
	const close = 1 << 30 // ticks: less than a second
	first := tsc(&cpus[0])
	for i := range cpus[1:] {
		if t := tsc(&cpus[i+1]); first != nil && t != nil && *t-*first < close {
			*t = *first
		}
	}
}

// load makes the vCPU what the state says.
func (v *vcpu) load(s *CPUState) error {
	if len(s.XCRs) > 16 || len(s.LAPIC) != 1024 || len(s.XSave) < 576 {
		return errors.New("the state of the CPU is not whole")
	}
	xcrs := &kvm.XCRs{Count: uint32(len(s.XCRs))}
	copy(xcrs.XCR[:], s.XCRs)
	area := make([]byte, max(v.engine.XSaveSize(), len(s.XSave)))
	copy(area, s.XSave)
	lapic := &kvm.LAPICState{}
	copy(lapic.Regs[:], s.LAPIC)
	control, first, last := splitMSRs(s.MSRs)
	steps := []func() error{
		func() error { return v.engine.SetMPState(kvm.MPState{State: s.MPState}) },
		func() error { return v.engine.SetRegs(&s.Regs) },
		func() error { return v.engine.SetSregs(&s.Sregs) },
		// Behind EFER.SVME, and what allows VMXON.
		func() error { return v.loadMSRs(control) },
		func() error {
			if s.Nested == nil {
				return nil
			}
			return v.engine.SetNestedState(s.Nested)
		},
		func() error {
			if xcrs.Count == 0 { // of a CPU without XSAVE
				return nil
			}
			return v.engine.SetXCRs(xcrs)
		},
		func() error { return v.engine.SetXSave(area) },
		func() error { return v.engine.SetDebugRegs(&s.DebugRegs) },
		func() error { return v.loadMSRs(first) },
		func() error { return v.engine.SetLAPIC(lapic) },
		func() error { return v.loadMSRs(last) },
		func() error { return v.engine.SetEvents(&s.Events) },
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	// The guest's watchdogs must not take the gap for a hang. It needs a clock
	// that the guest may not have.
	v.engine.KVMClockCtrl()
	if v.in != nil {
		return v.in.load(s)
	}
	return nil
}

// splitMSRs keeps apart what must come before the state of nested virtualization,
// and what must come after the local APIC.
func splitMSRs(list []kvm.MSREntry) (control, first, last []kvm.MSREntry) {
	for _, m := range list {
		switch m.Index {
		case x86.MSRFeatureControl:
			control = append(control, m)
		case x86.MSRTSCDeadline:
			last = append(last, m)
		default:
			first = append(first, m)
		}
	}
	return control, first, last
}

// load gives the interpreter the state that KVM was given.
func (in *interpreter) load(s *CPUState) error {
	sh := in.shared
	sh.Regs, sh.Sregs, sh.Events = s.Regs, s.Sregs, s.Events
	sh.Sregs.InterruptBitmap = [4]uint64{}
	in.cpu.Load(&sh.Regs, &sh.Sregs)
	in.cpu.InNMI = s.Events.NMI.Masked != 0
	in.entered = s.MPState != kvm.MPStateUninitialized
	in.halted = s.MPState == kvm.MPStateHalted
	in.window = true // an interrupt may be waiting
	for _, msr := range []uint32{x86.MSRLStar, x86.MSRStar, x86.MSRTSC} {
		if err := in.wrote(msr); err != nil {
			return err
		}
	}
	gs, err := in.v.engine.MSR(x86.MSRKernelGSBase)
	if err != nil {
		return err
	}
	in.cpu.SetKernelGSBase(gs)
	return nil
}

// CPUError is the error for a host whose CPU lacks what a state's has.
type CPUError struct{ Missing []string }

// Error implements error.
func (e *CPUError) Error() string {
	return "this host's CPU lacks what the one has that the guest was saved on: " + strings.Join(e.Missing, ", ")
}

// comparedLeaves are the feature bits of CPUID that a guest may rely on: leaf,
// subleaf, and which bits of EAX, EBX, ECX and EDX count.
var comparedLeaves = []struct {
	leaf, sub uint32
	mask      [4]uint32
}{
	{1, 0, [4]uint32{0, 0, ^uint32(1<<31 | 1<<27 | 1<<24 | 1<<3), ^uint32(1 << 28)}}, // not OSXSAVE and what is vmm's choice
	{7, 0, [4]uint32{0, ^uint32(0), ^uint32(1 << 4), ^uint32(0)}},                    // not OSPKE
	{7, 1, [4]uint32{^uint32(0), 0, 0, ^uint32(0)}},
	{0xd, 1, [4]uint32{0xf, 0, 0, 0}},
	{0x80000001, 0, [4]uint32{0, 0, ^uint32(0), ^uint32(0)}},
}

// seenOf returns what a guest would see of the leaves that a host supports.
func (v *vcpu) seenOf(host []kvm.CPUIDEntry) ([]kvm.CPUIDEntry, error) {
	if err := v.engine.SetCPUID(host); err != nil {
		return nil, err
	}
	seen, err := v.engine.CPUID()
	return seen, errors.Join(err, v.engine.SetCPUID(v.cpuid))
}

// checkCPU compares the features that the guest has seen with the host's.
func (m *Machine) checkCPU(s *State, host []kvm.CPUIDEntry) error {
	have, err := m.cpus[0].seenOf(host)
	if err != nil {
		return err
	}
	want := s.CPUs[0].Features
	if a, b := vendor(want), vendor(have); a != b {
		return &CPUError{[]string{fmt.Sprintf("a CPU by %s, not %s", a, b)}}
	}
	if missing := missingFeatures(want, have); missing != nil {
		return &CPUError{missing}
	}
	return nil
}

// missingFeatures names the bits of comparedLeaves that are wanted and not there.
func missingFeatures(want, have []kvm.CPUIDEntry) (missing []string) {
	for _, l := range comparedLeaves {
		a, b := leaf(want, l.leaf, l.sub), leaf(have, l.leaf, l.sub)
		for i, name := range []string{"EAX", "EBX", "ECX", "EDX"} {
			for bit, lost := 0, a[i]&^b[i]&l.mask[i]; lost != 0; bit, lost = bit+1, lost>>1 {
				if lost&1 != 0 {
					missing = append(missing, featureName(l.leaf, l.sub, i, bit, name))
				}
			}
		}
	}
	return missing
}

// features names bits of CPUID that people know by name (SDM 2, CPUID; APM 3, E.3).
var features = map[[4]uint32]string{
	{1, 0, 2, 0}: "SSE3", {1, 0, 2, 5}: "VMX", {1, 0, 2, 9}: "SSSE3", {1, 0, 2, 12}: "FMA", {1, 0, 2, 13}: "CMPXCHG16B",
	{1, 0, 2, 17}: "PCID", {1, 0, 2, 19}: "SSE4.1", {1, 0, 2, 20}: "SSE4.2", {1, 0, 2, 21}: "x2APIC", {1, 0, 2, 22}: "MOVBE",
	{1, 0, 2, 23}: "POPCNT", {1, 0, 2, 25}: "AES", {1, 0, 2, 26}: "XSAVE", {1, 0, 2, 28}: "AVX", {1, 0, 2, 29}: "F16C", {1, 0, 2, 30}: "RDRAND",
	{7, 0, 1, 0}: "FSGSBASE", {7, 0, 1, 3}: "BMI1", {7, 0, 1, 5}: "AVX2", {7, 0, 1, 7}: "SMEP", {7, 0, 1, 8}: "BMI2", {7, 0, 1, 9}: "ERMS",
	{7, 0, 1, 10}: "INVPCID", {7, 0, 1, 16}: "AVX-512F", {7, 0, 1, 18}: "RDSEED", {7, 0, 1, 19}: "ADX", {7, 0, 1, 20}: "SMAP",
	{7, 0, 1, 23}: "CLFLUSHOPT", {7, 0, 1, 29}: "SHA", {7, 0, 1, 30}: "AVX-512BW", {7, 0, 1, 31}: "AVX-512VL", {7, 0, 2, 3}: "PKU", {7, 0, 2, 16}: "LA57",
	{0xd, 1, 0, 0}: "XSAVEOPT", {0xd, 1, 0, 1}: "XSAVEC", {0xd, 1, 0, 3}: "XSAVES",
	{0x80000001, 0, 2, 2}: "SVM", {0x80000001, 0, 2, 5}: "LZCNT", {0x80000001, 0, 3, 11}: "SYSCALL", {0x80000001, 0, 3, 20}: "NX",
	{0x80000001, 0, 3, 26}: "1-GiB pages", {0x80000001, 0, 3, 27}: "RDTSCP", {0x80000001, 0, 3, 29}: "64-bit mode",
}

// featureName is the name of a bit, or where it is.
func featureName(leaf, sub uint32, register, bit int, registerName string) string {
	if n, ok := features[[4]uint32{leaf, sub, uint32(register), uint32(bit)}]; ok {
		return n
	}
	return fmt.Sprintf("CPUID.%X.%d:%s.%d", leaf, sub, registerName, bit)
}

func leaf(ids []kvm.CPUIDEntry, function, index uint32) (r [4]uint32) {
	for _, e := range ids {
		if e.Function == function && (e.Index == index || e.Flags&kvm.CPUIDSignificantIndex == 0 && index == 0) {
			return [4]uint32{e.EAX, e.EBX, e.ECX, e.EDX}
		}
	}
	return r
}

// vendor is the string of leaf 0.
func vendor(ids []kvm.CPUIDEntry) string {
	r := leaf(ids, 0, 0)
	var b []byte
	for _, w := range []uint32{r[1], r[3], r[2]} {
		b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
	}
	return string(b)
}

// checkTSC refuses a host whose TSC runs at another speed and cannot be told
// otherwise; small differences are those of measuring it.
func (v *vcpu) checkTSC(khz int) error {
	now, err := v.engine.TSCKHz()
	if err != nil || khz <= 0 || now <= 0 {
		return nil
	}
	if d := now - khz; d*d <= (khz/4000)*(khz/4000) {
		return nil
	}
	if err := v.engine.SetTSCKHz(khz); err != nil && !errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("the guest's TSC runs at %d kHz, this host's at %d, and cannot be made to: %w", khz, now, err)
	}
	return nil
}
