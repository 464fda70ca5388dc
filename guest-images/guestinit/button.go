package guestinit

import (
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inputEvent is struct input_event of <linux/input.h>.
type inputEvent struct {
	Time  unix.Timeval
	Type  uint16
	Code  uint16
	Value int32
}

// From <linux/input-event-codes.h>.
const (
	evKey    = 1
	keyPower = 116
)

// watchPowerButton calls pressed when a power button is.
func watchPowerButton(pressed func()) {
	devices, _ := filepath.Glob("/dev/input/event*")
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			continue
		}
		go func() {
			defer f.Close()
			var e inputEvent
			b := (*[unsafe.Sizeof(e)]byte)(unsafe.Pointer(&e))[:]
			for {
				if n, err := f.Read(b); err != nil || n < len(b) {
					return
				}
				if e.Type == evKey && e.Code == keyPower && e.Value == 1 {
					pressed()
				}
			}
		}()
	}
}
