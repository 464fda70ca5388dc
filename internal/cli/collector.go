package cli

import (
	"os"
	"runtime/debug"
	"time"
)

const (
	// startGCPercent lets the heap grow to 16 MB before Go's first collection, where it would be 4.
	startGCPercent = 400
	// startTime is more than most starts take.
	startTime = time.Second
	// bootTime is more than most guests need until they do what they are there for.
	bootTime = 30 * time.Second
)

// putOffCollection has Go's collector wait while a VM is being started: nearly all that
// this needs is garbage a moment later, when machine.Run has it collected. Who sets GOGC
// has decided otherwise.
func putOffCollection() {
	if os.Getenv("GOGC") != "" {
		return
	}
	before := debug.SetGCPercent(startGCPercent)
	time.AfterFunc(startTime, func() { debug.SetGCPercent(before) })
}
