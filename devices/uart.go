package devices

import (
	"errors"
	"io"
	"sync"
	"time"
)

// UART is a 16550A (National Semiconductor PC16550D). What the guest sends
// goes to an io.Writer; Receive feeds what it reads.
//
// Output is written by a goroutine of its own, so that a slow terminal stops
// the guest only once a good deal is waiting. Close ends it.
type UART struct {
	irq IRQ
	out io.Writer

	mu   sync.Mutex
	room sync.Cond // something was taken from rx or tx, or closed
	work sync.Cond // something was put into tx, or closed

	ier, lcr, mcr, scr, fcr uint8
	dll, dlm                uint8
	rx                      []byte // at most fifoSize
	overrun                 bool
	thrEmpty                bool // the THRE interrupt waits to be seen
	level                   bool

	tx     []byte
	spare  []byte // the other of two transmit buffers
	busy   bool   // the goroutine is writing
	closed bool
	// released is set once nobody may wait for the console.
	released bool
	done     chan struct{}
}

const (
	uartFIFOSize = 16
	uartBacklog  = 64 << 10

	// UARTPorts is how many ports the device has.
	UARTPorts = 8
)

// Registers, by offset.
const (
	uartData = 0 // RBR, THR; DLL with DLAB
	uartIER  = 1 // DLM with DLAB
	uartIIR  = 2 // FCR when written
	uartLCR  = 3
	uartMCR  = 4
	uartLSR  = 5
	uartMSR  = 6
	uartSCR  = 7
)

// Bits of the registers.
const (
	ierRx   = 1 << 0
	ierTHRE = 1 << 1
	ierLine = 1 << 2

	iirNone    = 1
	iirTHRE    = 2
	iirRx      = 4
	iirLine    = 6
	iirTimeout = 0xc
	iirFIFO    = 0xc0

	fcrEnable  = 1 << 0
	fcrClearRx = 1 << 1

	lcrDLAB = 1 << 7

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOUT1 = 1 << 2
	mcrOUT2 = 1 << 3
	mcrLoop = 1 << 4

	lsrData    = 1 << 0
	lsrOverrun = 1 << 1
	lsrTHRE    = 1 << 5
	lsrTEMT    = 1 << 6

	msrCTS = 1 << 4
	msrDSR = 1 << 5
	msrRI  = 1 << 6
	msrDCD = 1 << 7
)

// NewUART returns a serial port that sends to out.
func NewUART(irq IRQ, out io.Writer) *UART {
	u := &UART{irq: irq, out: out, dll: 1, done: make(chan struct{})}
	u.room.L, u.work.L = &u.mu, &u.mu
	go u.transmit()
	return u
}

// Release lets no guest wait for the console any more: output beyond what is
// waiting is lost. It is for ending a guest whose console takes nothing.
func (u *UART) Release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.released = true
	u.room.Broadcast()
}

// closeGrace is how long Close waits for a console that takes nothing.
const closeGrace = 2 * time.Second

// Close sends what is waiting and stops the device's goroutine. An error means
// that the console did not take it.
func (u *UART) Close() error {
	u.mu.Lock()
	u.closed = true
	u.room.Broadcast()
	u.work.Broadcast()
	u.mu.Unlock()
	select {
	case <-u.done:
		return nil
	case <-time.After(closeGrace):
		return errors.New("the console does not take the guest's last output")
	}
}

// transmit writes the guest's output until Close.
func (u *UART) transmit() {
	defer close(u.done)
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		for len(u.tx) == 0 && !u.closed {
			u.work.Wait()
		}
		if len(u.tx) == 0 {
			return
		}
		chunk := u.tx
		u.tx, u.busy = u.spare[:0], true
		u.mu.Unlock()
		u.out.Write(chunk) // a console that is gone must not stop the guest
		u.mu.Lock()
		u.spare, u.busy = chunk, false
		u.room.Broadcast()
	}
}

// Flush waits until everything sent so far has been written.
func (u *UART) Flush() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for (len(u.tx) > 0 || u.busy) && !u.closed {
		u.room.Wait()
	}
}

// Receive gives bytes to the guest and waits until its FIFO has taken them
// all, or the device is closed: io.ErrClosedPipe. It also waits for the guest
// to turn receiving on, so that nothing is lost that was sent while it booted.
func (u *UART) Receive(p []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(p) > 0 {
		for (len(u.rx) >= u.capacity() || !u.listening()) && !u.closed {
			u.room.Wait()
		}
		if u.closed {
			return io.ErrClosedPipe
		}
		n := min(len(p), u.capacity()-len(u.rx))
		u.rx = append(u.rx, p[:n]...)
		p = p[n:]
		u.update()
	}
	return nil
}

// capacity is how much the receiver holds: one byte while the FIFO is off.
func (u *UART) capacity() int {
	if u.fcr&fcrEnable == 0 {
		return 1
	}
	return uartFIFOSize
}

// listening reports whether the guest waits for input. Probing drivers turn the
// interrupt on too, but not the gate behind it.
func (u *UART) listening() bool { return u.ier&ierRx != 0 && u.mcr&mcrOUT2 != 0 }

// pending returns the interrupt identification, or iirNone.
func (u *UART) pending() uint8 {
	switch {
	case u.ier&ierLine != 0 && u.overrun:
		return iirLine
	case u.ier&ierRx != 0 && len(u.rx) >= u.trigger():
		return iirRx
	case u.ier&ierRx != 0 && len(u.rx) > 0:
		return iirTimeout
	case u.ier&ierTHRE != 0 && u.thrEmpty:
		return iirTHRE
	}
	return iirNone
}

// trigger is the receive FIFO's interrupt level.
func (u *UART) trigger() int {
	if u.fcr&fcrEnable == 0 {
		return 1
	}
	return [...]int{1, 4, 8, 14}[u.fcr>>6]
}

// update drives the interrupt line, which OUT2 gates on a PC.
func (u *UART) update() {
	level := u.pending() != iirNone && u.mcr&mcrOUT2 != 0
	if level != u.level {
		u.level = level
		u.irq.Set(level)
	}
}

// In reads a register.
func (u *UART) In(offset uint16, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	FillOnes(data)
	if len(data) > 0 {
		data[0] = u.read(offset)
	}
	u.update()
}

func (u *UART) read(offset uint16) uint8 {
	switch offset {
	case uartData:
		if u.lcr&lcrDLAB != 0 {
			return u.dll
		}
		if len(u.rx) == 0 {
			return 0
		}
		v := u.rx[0]
		u.rx = u.rx[:copy(u.rx, u.rx[1:])]
		u.room.Broadcast()
		return v
	case uartIER:
		if u.lcr&lcrDLAB != 0 {
			return u.dlm
		}
		return u.ier
	case uartIIR:
		v := u.pending()
		if v == iirTHRE {
			u.thrEmpty = false
		}
		if u.fcr&fcrEnable != 0 {
			v |= iirFIFO
		}
		return v
	case uartLCR:
		return u.lcr
	case uartMCR:
		return u.mcr
	case uartLSR:
		v := uint8(lsrTHRE | lsrTEMT)
		if len(u.rx) > 0 {
			v |= lsrData
		}
		if u.overrun {
			v |= lsrOverrun
			u.overrun = false
		}
		return v
	case uartMSR:
		return u.modemStatus()
	case uartSCR:
		return u.scr
	}
	return 0xff
}

// modemStatus is a modem that is always there, or MCR's bits in loopback.
func (u *UART) modemStatus() uint8 {
	if u.mcr&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var v uint8
	for _, b := range [...]struct{ mcr, msr uint8 }{
		{mcrRTS, msrCTS}, {mcrDTR, msrDSR}, {mcrOUT1, msrRI}, {mcrOUT2, msrDCD},
	} {
		if u.mcr&b.mcr != 0 {
			v |= b.msr
		}
	}
	return v
}

// Out writes a register. It waits where too much output is unwritten.
func (u *UART) Out(offset uint16, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, v := range data {
		u.write(offset, v)
	}
	u.update()
}

func (u *UART) write(offset uint16, v uint8) {
	switch offset {
	case uartData:
		if u.lcr&lcrDLAB != 0 {
			u.dll = v
			return
		}
		u.send(v)
	case uartIER:
		if u.lcr&lcrDLAB != 0 {
			u.dlm = v
			return
		}
		// Turning the THRE interrupt on with an empty THR raises it.
		if v&ierTHRE != 0 && u.ier&ierTHRE == 0 {
			u.thrEmpty = true
		}
		u.ier = v & 0xf
		u.room.Broadcast()
	case uartIIR:
		// Turning the FIFO on or off clears it on the chip. Here it does not:
		// drivers do so just after they have begun to listen.
		if v&fcrClearRx != 0 {
			u.rx = u.rx[:0]
		}
		u.fcr = v
		u.room.Broadcast()
	case uartLCR:
		u.lcr = v
	case uartMCR:
		u.mcr = v & 0x1f
		u.room.Broadcast()
	case uartSCR:
		u.scr = v
	}
}

func (u *UART) send(v uint8) {
	u.thrEmpty = true
	if u.mcr&mcrLoop != 0 {
		if len(u.rx) < uartFIFOSize {
			u.rx = append(u.rx, v)
		} else {
			u.overrun = true
		}
		return
	}
	for len(u.tx) >= uartBacklog && !u.closed && !u.released {
		u.room.Wait()
	}
	if len(u.tx) >= uartBacklog {
		return
	}
	u.tx = append(u.tx, v)
	if len(u.tx) == 1 {
		u.work.Signal()
	}
}
