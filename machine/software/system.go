package software

import (
	"math/bits"
	"sync"
	"time"

	"vmm/kvm"
	"vmm/machine/engine"
	"vmm/machine/software/irqchip"
)

// system implements engine.System. It holds nothing of the host's.
type system struct {
	// tscKHz is the frequency of the host's time-stamp counter, which guests have, too.
	tscKHz func() uint64
}

func newSystem() *system {
	from := takeTime()
	return &system{tscKHz: sync.OnceValue(func() uint64 { return measureTSC(from) })}
}

// caps are the capabilities of KVM's that this engine has. The others are 0.
var caps = map[kvm.Cap]int{
	kvm.CapIRQChip: 1, kvm.CapUserMemory: 1, kvm.CapReadonlyMem: 1, kvm.CapNrMemslots: maxSlots,
	kvm.CapSetTSSAddr: 1, kvm.CapSetIdentityMapAddr: 1, kvm.CapExtCPUID: 1,
	kvm.CapNrVCPUs: irqchip.MaxCPUs, kvm.CapMaxVCPUs: irqchip.MaxCPUs, kvm.CapMaxVCPUID: irqchip.MaxCPUs,
	kvm.CapIRQFD: 1, kvm.CapIOEventFD: 1, kvm.CapSignalMSI: 1, kvm.CapPIT2: 1,
	kvm.CapAdjustClock: 1, kvm.CapKVMClockCtrl: 1, kvm.CapGetTSCKHz: 1, kvm.CapTSCDeadlineTimer: 1,
	kvm.CapMPState: 1, kvm.CapVCPUEvents: 1, kvm.CapDebugRegs: 1, kvm.CapXSave: 1, kvm.CapXCRS: 1,
	kvm.CapImmediateExit: 1,
}

// CheckExtension implements engine.System.
func (s *system) CheckExtension(c kvm.Cap) (int, error) { return caps[c], nil }

// Has implements engine.System.
func (s *system) Has(c kvm.Cap) bool { return caps[c] > 0 }

// SupportedCPUID implements engine.System.
func (s *system) SupportedCPUID() ([]kvm.CPUIDEntry, error) { return supportedCPUID(), nil }

// MSRIndexList implements engine.System.
func (s *system) MSRIndexList() ([]uint32, error) { return savedMSRs(), nil }

// CreateVM implements engine.System.
func (s *system) CreateVM() (engine.VM, error) { return newVM(s.tscKHz()) }

// Close implements engine.System.
func (s *system) Close() error { return nil }

// moment is a time by both of the host's clocks.
type moment struct {
	tsc  uint64
	time time.Time
}

// takeTime reads both clocks, as close to each other as it can be done: an interrupt of the
// host's between them would make one late.
func takeTime() (m moment) {
	const tries = 10
	shortest := ^uint64(0)
	for range tries {
		before := hostTSC()
		now := time.Now()
		if took := hostTSC() - before; took < shortest {
			shortest, m = took, moment{before + took/2, now}
		}
	}
	return m
}

// measureTSC returns how many thousand times the time-stamp counter has counted in a second,
// since a moment that need not be long ago: to about 10 in a million.
func measureTSC(from moment) (khz uint64) {
	const long = 10 * time.Millisecond
	time.Sleep(time.Until(from.time.Add(long)))
	to := takeTime()
	return max(scaled(to.tsc-from.tsc, 1e6, uint64(to.time.Sub(from.time))), 1)
}

// scaled returns n*mul/div; the result's upper half is lost.
func scaled(n, mul, div uint64) uint64 {
	hi, lo := bits.Mul64(n, mul)
	q, _ := bits.Div64(hi%div, lo, div)
	return q
}
