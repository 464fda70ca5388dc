package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"golang.org/x/sys/unix"
)

// forgetProgram takes the program's own pages, its code and constants, out of this process's resident memory. A start has
// touched nearly all of them, and what runs on needs few: those it finds in the page cache again.
func forgetProgram() {
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer smaps.Close()
	for _, m := range unchanged(smaps, uint64(reflect.ValueOf(forgetProgram).Pointer())) {
		unix.Syscall(unix.SYS_MADVISE, uintptr(m.begin), uintptr(m.end-m.begin), unix.MADV_DONTNEED) // if it fails it is only large
	}
}

// mapping is a range of addresses, of a file.
type mapping struct {
	begin, end uint64
	file       string // its device and inode
}

// unchanged finds, in the text of /proc/PID/smaps (proc_pid_smaps(5)), the private mappings of the file that has the code at an
// address, which cannot be written to and never were: by a linker that has put addresses there, or a debugger its breakpoints.
// They are next to each other, and it reads no further: the kernel looks at every page of what it tells of, the guest's too.
func unchanged(smaps io.Reader, code uint64) (list []mapping) {
	var m mapping
	var rights string
	found := false
	for s := bufio.NewScanner(smaps); s.Scan(); {
		var next mapping
		var access, offset, device, inode string
		if _, err := fmt.Sscanf(s.Text(), "%x-%x %s %s %s %s", &next.begin, &next.end, &access, &offset, &device, &inode); err == nil {
			if next.file = device + " " + inode; next.file != m.file {
				if found {
					break
				}
				list = nil
			}
			m, rights = next, access
			found = found || m.begin <= code && code < m.end && inode != "0"
		} else if field := strings.Fields(s.Text()); len(field) > 1 && field[0] == "Anonymous:" && field[1] == "0" && strings.HasPrefix(rights, "r-") && strings.HasSuffix(rights, "p") {
			list = append(list, m)
		}
	}
	if !found {
		return nil
	}
	return list
}
