package software

import (
	"time"

	"golang.org/x/sys/unix"

	"vmm/kvm"
	"vmm/machine/engine"
)

// What the CPU brings.

func newVCPU(*VM, int) (engine.VCPU, error) { return nil, unix.ENOSYS }
func supportedCPUID() []kvm.CPUIDEntry      { return nil }
func savedMSRs() []uint32                   { return nil }

var epoch = time.Now()

func hostTSC() uint64 { return uint64(time.Since(epoch)) }
