package devices

import (
	"bytes"
	"errors"
	"time"
)

// UARTState is the registers of a UART and what it has received. What it was
// given to send is not part of it: that is on its way to the console.
type UARTState struct {
	IER      uint8  `json:"ier"`
	LCR      uint8  `json:"lcr"`
	MCR      uint8  `json:"mcr"`
	SCR      uint8  `json:"scr"`
	FCR      uint8  `json:"fcr"`
	DLL      uint8  `json:"dll"`
	DLM      uint8  `json:"dlm"`
	Receive  []byte `json:"receive"` // the receive FIFO
	Overrun  bool   `json:"overrun"`
	THREmpty bool   `json:"thrEmpty"` // the THRE interrupt waits to be seen
}

// Save returns a copy of the device's state.
func (u *UART) Save() *UARTState {
	u.mu.Lock()
	defer u.mu.Unlock()
	return &UARTState{u.ier, u.lcr, u.mcr, u.scr, u.fcr, u.dll, u.dlm, bytes.Clone(u.rx), u.overrun, u.thrEmpty}
}

// Load takes a state for a device that was not used yet.
func (u *UART) Load(s *UARTState) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(s.Receive) > uartFIFOSize {
		return errors.New("more in the UART's FIFO than it holds")
	}
	u.ier, u.lcr, u.mcr, u.scr, u.fcr, u.dll, u.dlm = s.IER, s.LCR, s.MCR, s.SCR, s.FCR, s.DLL, s.DLM
	u.rx, u.overrun, u.thrEmpty = bytes.Clone(s.Receive), s.Overrun, s.THREmpty
	u.update()
	u.room.Broadcast()
	return nil
}

// PMState is ACPI's fixed hardware.
type PMState struct {
	Status  uint16        `json:"status"`
	Enable  uint16        `json:"enable"`
	Control uint16        `json:"control"`
	Timer   time.Duration `json:"timer"` // how long the timer has run, in nanoseconds
}

// Save returns the device's state.
func (p *PM) Save() *PMState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &PMState{p.status, p.enable, p.control, time.Since(p.start)}
}

// Load takes a state; the timer goes on from there.
func (p *PM) Load(s *PMState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.enable, p.control, p.start = s.Status, s.Enable, s.Control, time.Now().Add(-s.Timer)
	p.update()
}

// RTCState is the CMOS memory and by how much the guest has set the clock.
type RTCState struct {
	Index  uint8         `json:"index"`
	CMOS   []byte        `json:"cmos"`
	Offset time.Duration `json:"offset"` // to the host's clock, in nanoseconds
}

// Save returns the device's state.
func (r *RTC) Save() *RTCState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &RTCState{r.index, bytes.Clone(r.cmos[:]), r.offset}
}

// Load takes a state.
func (r *RTC) Load(s *RTCState) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(s.CMOS) != len(r.cmos) || int(s.Index) >= len(r.cmos) {
		return errors.New("no CMOS memory")
	}
	r.index, r.offset = s.Index, s.Offset
	copy(r.cmos[:], s.CMOS)
	return nil
}
