package devices

// Guest ports of the devices by which a guest ends.
const (
	I8042Ports     = 5 // 0x60 to 0x64
	i8042Command   = 4
	i8042PulseLine = 0xfe // pulse the CPU's reset line

	resetSystem = 1 << 1 // reset control register at 0xcf9
	resetCPU    = 1 << 2
)

// I8042 is a keyboard controller without keyboard: it can reset the system.
type I8042 struct {
	Reset func()
}

// In reads the status (nothing to say) or the data port.
func (k *I8042) In(_ uint16, data []byte) { clear(data) }

// Out obeys the command to pulse the reset line.
func (k *I8042) Out(offset uint16, data []byte) {
	if offset == i8042Command && len(data) > 0 && data[0] == i8042PulseLine {
		k.Reset()
	}
}

// ResetControl is the chipset's register at port 0xcf9, which the FADT names.
type ResetControl struct {
	Reset func()
}

// ResetValue is what resets the system.
const ResetValue = resetSystem | resetCPU

// In reads the register.
func (r *ResetControl) In(_ uint16, data []byte) { clear(data) }

// Out resets the system.
func (r *ResetControl) Out(_ uint16, data []byte) {
	if len(data) > 0 && data[0]&resetCPU != 0 {
		r.Reset()
	}
}

// DebugExit is QEMU's isa-debug-exit: what the guest writes becomes the
// VMM's exit status, as value<<1|1.
type DebugExit struct {
	Exit func(status int)
}

// In reads nothing.
func (d *DebugExit) In(_ uint16, data []byte) { clear(data) }

// Out ends the guest.
func (d *DebugExit) Out(_ uint16, data []byte) {
	if len(data) > 0 {
		d.Exit(int(data[0])<<1 | 1)
	}
}

// Events of the pvpanic device (QEMU docs/specs/pvpanic.rst).
const (
	PanicEvent   = 1 << 0 // PVPANIC_PANICKED
	CrashLoaded  = 1 << 1 // PVPANIC_CRASH_LOADED: a crash kernel takes over
	panicSupport = PanicEvent | CrashLoaded
)

// PVPanic lets a panicking guest say so.
type PVPanic struct {
	Panic func()
}

// In reads the supported events.
func (p *PVPanic) In(_ uint16, data []byte) {
	clear(data)
	if len(data) > 0 {
		data[0] = panicSupport
	}
}

// Out takes an event.
func (p *PVPanic) Out(_ uint16, data []byte) {
	if len(data) > 0 && data[0]&PanicEvent != 0 {
		p.Panic()
	}
}
