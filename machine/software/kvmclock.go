package software

import (
	"encoding/binary"
	"math/bits"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/x86"
)

// pvclock is a CPU's part of kvmclock, which tells a guest how to make nanoseconds of
// the TSC, and so how fast that is (the KVM API's msr.rst and cpuid.rst).
type pvclock struct {
	msr  uint64   // where the guest wants it, and bit 0
	wall uint64   // where it wanted the time of its start
	from *reading // what the guest has of it was made of this one
}

const (
	clockEnabled = 1 << 0
	clockSize    = 32
	// Flags of the structure: all CPUs' clocks are one, and the guest was stopped.
	clockStable  = 1 << 0
	clockStopped = 1 << 1
)

// setClock is the guest's write of where its clock shall be.
func (v *vcpu) setClock(x uint64) bool {
	v.clock.msr = x
	v.clock.publish(v)
	return true
}

// publish writes the structure.
func (c *pvclock) publish(v *vcpu) { c.write(v, clockStable) }

// write is publish with flags. That the guest was stopped it takes back itself.
func (c *pvclock) write(v *vcpu, flags byte) {
	c.from = v.vm.clock.Load()
	if c.msr&clockEnabled == 0 {
		return
	}
	b := v.guest(c.msr&^clockEnabled, clockSize)
	if b == nil {
		return
	}
	le := binary.LittleEndian
	shift, mul := scale(v.vm.tscKHz)
	host := x86.RDTSC()
	version := le.Uint32(b) &^ 1
	le.PutUint32(b, version+1) // odd while it changes
	le.PutUint64(b[8:], host+v.tscOffset)
	le.PutUint64(b[16:], v.vm.clockAt(host))
	le.PutUint32(b[24:], mul)
	b[28], b[29] = byte(shift), flags|b[29]&clockStopped
	le.PutUint32(b, version+2)
}

// scale makes nanoseconds of ticks: (ticks << shift) * mul >> 32.
func scale(khz uint64) (shift int8, mul uint32) {
	// Ticks a second between 1 and 2 of 1e9 are shifted so that mul has 32 bits.
	const nano = 1_000_000_000
	hz := khz * 1000
	for hz > 2*nano {
		hz >>= 1
		shift--
	}
	for hz <= nano {
		hz <<= 1
		shift++
	}
	hi, lo := uint64(nano)>>32, uint64(nano)<<32
	q, _ := bits.Div64(hi, lo, hz)
	return shift, uint32(q)
}

// setWall writes the time at which the clock was zero.
func (v *vcpu) setWall(x uint64) bool {
	v.clock.wall = x
	const size = 12
	b := v.guest(x, size)
	if b == nil {
		return true
	}
	start := time.Now().Add(-time.Duration(v.vm.clockAt(x86.RDTSC())))
	le := binary.LittleEndian
	le.PutUint32(b, 1)
	le.PutUint32(b[4:], uint32(start.Unix()))
	le.PutUint32(b[8:], uint32(start.Nanosecond()))
	le.PutUint32(b, 2)
	return true
}

// guest returns n bytes of the guest's memory in one page, or nil.
func (v *vcpu) guest(gpa, n uint64) []byte {
	if gpa%pageSize > pageSize-n {
		return nil
	}
	p := v.vm.page(gpa, true)
	if p == nil {
		return nil
	}
	v.vm.wrote(gpa)
	v.vm.Wrote(gpa, n)
	return unsafe.Slice((*byte)(unsafe.Add(p, gpa%pageSize)), n)
}

// KVMClockCtrl implements engine.VCPU.
func (v *vcpu) KVMClockCtrl() error {
	if v.clock.msr&clockEnabled == 0 {
		return unix.EINVAL
	}
	v.clock.write(v, clockStable|clockStopped)
	return nil
}
