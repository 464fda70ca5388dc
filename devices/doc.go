// Package devices emulates the platform that a PC kernel expects: the 16550A
// serial port, the CMOS clock, the keyboard controller's reset line, ACPI's
// fixed hardware, the PCI host bridge, and the two devices by which a guest
// tells how it ended (pvpanic, isa-debug-exit).
//
// A port device has In and Out, called with the port's offset from the
// device's first one. They may be called from any vCPU's goroutine at once, so
// every device locks for itself. Offsets and lengths come from the guest:
// devices take any.
package devices

// IRQ is an interrupt line. Set must be cheap and must not call back into the
// device.
type IRQ interface {
	Set(level bool)
}

// FillOnes answers a read for which nobody is there: all bits are ones, as on a PC's
// bus that nobody drives.
func FillOnes(data []byte) {
	for i := range data {
		data[i] = 0xff
	}
}
