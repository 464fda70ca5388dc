// Package meminfo reads what the host's kernel says of its memory.
package meminfo

import (
	"os"
	"strconv"
	"strings"
)

// Value returns a number of /proc/meminfo (proc_meminfo(5)), in the unit that it has
// there: KiB, or a count of huge pages. It is 0 where it is missing.
func Value(name string) uint64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			return n
		}
	}
	return 0
}
