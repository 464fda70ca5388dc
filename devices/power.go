package devices

import (
	"encoding/binary"
	"sync"
	"time"
)

// PM is ACPI's power management: the sleep registers of hardware-reduced ACPI (ACPI
// 6.5, 4.8.3.7), the power-management timer, and an interrupt for the power button.
// There is fixed hardware too, for guests that are told of it: the PM1a event and
// control blocks, with the button (4.8).
type PM struct {
	irq      IRQ
	button   IRQ
	powerOff func()
	start    time.Time

	mu      sync.Mutex
	status  uint16
	enable  uint16
	control uint16
	level   bool
}

// Offsets of the blocks from the first port.
const (
	PMEvent   = 0 // PM1a_EVT_BLK: status, enable
	PMControl = 4 // PM1a_CNT_BLK
	PMTimer   = 8 // PM_TMR_BLK
	// SLEEP_CONTROL_REG and SLEEP_STATUS_REG
	PMSleepControl = 12
	PMSleepStatus  = 13
	PMPorts        = 14

	// PMSleepOff is SLP_TYP of \_S5.
	PMSleepOff = 5

	pmTimerHz = 3579545 // 4.8.2.1
)

// Bits of the PM1 registers (4.8.3).
const (
	pmPowerButton = 1 << 8
	pmSCIEnable   = 1 << 0
	pmSleepShift  = 10
	pmSleepEnable = 1 << 13
)

// Bits of SLEEP_CONTROL_REG (4.8.3.7).
const (
	sleepTypeShift = 2
	sleepEnable    = 1 << 5
)

// NewPM returns the block; irq is the SCI, button the edge-triggered interrupt of the
// power button, and powerOff is called when the guest enters S5.
func NewPM(irq, button IRQ, powerOff func()) *PM {
	return &PM{irq: irq, button: button, powerOff: powerOff, start: time.Now(), control: pmSCIEnable}
}

// PressPowerButton asks the guest to shut down.
func (p *PM) PressPowerButton() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status |= pmPowerButton
	p.update()
	p.button.Set(true)
	p.button.Set(false)
}

// update drives the SCI, which is level-triggered.
func (p *PM) update() {
	if level := p.status&p.enable != 0; level != p.level {
		p.level = level
		p.irq.Set(level)
	}
}

// registers returns the block's bytes.
func (p *PM) registers() (b [PMPorts]byte) {
	le := binary.LittleEndian
	le.PutUint16(b[PMEvent:], p.status)
	le.PutUint16(b[PMEvent+2:], p.enable)
	le.PutUint16(b[PMControl:], p.control)
	t := time.Since(p.start)
	ticks := uint64(t/time.Second)*pmTimerHz + uint64(t%time.Second)*pmTimerHz/uint64(time.Second)
	le.PutUint32(b[PMTimer:], uint32(ticks))
	return b
}

// In reads registers, also parts of them.
func (p *PM) In(offset uint16, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	FillOnes(data)
	if b := p.registers(); int(offset) < len(b) {
		copy(data, b[offset:])
	}
}

// Out writes registers, also parts of them.
func (p *PM) Out(offset uint16, data []byte) {
	p.mu.Lock()
	off := p.write(offset, data)
	p.mu.Unlock()
	if off {
		p.powerOff()
	}
}

// write reports whether the guest entered S5.
func (p *PM) write(offset uint16, data []byte) bool {
	b := p.registers()
	binary.LittleEndian.PutUint16(b[PMEvent:], 0) // status bits are cleared by writing ones
	if offset == PMSleepControl {
		return data[0]&sleepEnable != 0 && data[0]>>sleepTypeShift&7 == PMSleepOff
	}
	if int(offset) >= PMTimer {
		return false
	}
	copy(b[offset:PMTimer], data)
	le := binary.LittleEndian
	p.status &^= le.Uint16(b[PMEvent:])
	p.enable = le.Uint16(b[PMEvent+2:])
	control := le.Uint16(b[PMControl:])
	p.control = control&^pmSleepEnable | pmSCIEnable
	p.update()
	return control&pmSleepEnable != 0 && control>>pmSleepShift&7 == PMSleepOff
}
