// Package footprint makes a process smaller that has begun its real work.
package footprint

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Shrink gives back what only the start of the program needed: the collector's free
// memory, which it would keep for minutes, and the program's own code and constants,
// of which the kernel maps 64 KiB wherever one byte is touched. What is used again
// comes back from the page cache, a page fault for 64 KiB. It takes some milliseconds.
//
// Breakpoints that a debugger has set in this program are lost.
func Shrink() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		var from, to uintptr
		var mode string
		line = bytes.TrimSuffix(line, []byte("\n"))
		if n, _ := fmt.Sscanf(string(line), "%x-%x %s", &from, &to, &mode); n < 3 {
			continue
		}
		// What cannot be written to is as it is in the file.
		if mode[1] == '-' && mode[3] == 'p' && bytes.HasSuffix(line, []byte(" "+exe)) {
			unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
