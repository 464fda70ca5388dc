package machine

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmm/internal/holes"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapPresent = 1 << 63
	pagemapSwapped = 1 << 62
	pagemapFile    = 1 << 61
	pagemapEntry   = 8
)

// Populated returns which blocks of RAM may hold something else than zeros: what
// was never touched, and is not in a file, does not. block is a number of bytes,
// whole pages.
func (m *Memory) Populated(block int) ([]bool, error) {
	out := make([]bool, (int(m.size)+block-1)/block)
	err := m.eachPage(func(page int, entry uint64) {
		if entry&(pagemapPresent|pagemapSwapped) != 0 {
			out[page*pageSize/block] = true
		}
	})
	if err != nil {
		return nil, err
	}
	for _, b := range m.backed {
		if err := eachData(b, func(from, to int64) {
			for i := from / int64(block); i*int64(block) < to; i++ {
				out[i] = true
			}
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// WorkingSet are the pages that were used, and which of them were written to, in
// ascending order.
type WorkingSet []PageRange

// PageRange is pages of RAM, of 4 KiB, that follow each other.
type PageRange struct {
	Page    uint32 // the first's number, in a Backing's order
	Pages   uint32 // how many
	Written bool   // and not only read
}

// maxWorkingSet bounds a working set, in pages: what reads all of its memory is not
// helped.
const maxWorkingSet = 64 << 20 / pageSize

// WorkingSet returns what of a RAM that files back was used until now.
func (m *Memory) WorkingSet() (WorkingSet, error) {
	var out WorkingSet
	total := 0
	err := m.eachPage(func(page int, entry uint64) {
		if entry&pagemapPresent == 0 || total == maxWorkingSet {
			return
		}
		total++
		written := entry&pagemapFile == 0
		if n := len(out); n > 0 && out[n-1].Page+out[n-1].Pages == uint32(page) && out[n-1].Written == written {
			out[n-1].Pages++
		} else {
			out = append(out, PageRange{uint32(page), 1, written})
		}
	})
	return out, err
}

// prefetch brings pages in as if they were used again, so that the guest need not
// wait for each. It may be called while the guest runs.
func (m *Memory) prefetch(set WorkingSet) {
	for _, r := range set {
		advice := unix.MADV_POPULATE_READ
		if r.Written {
			advice = unix.MADV_POPULATE_WRITE
		}
		for _, p := range m.Range(int64(r.Page)*pageSize, int64(r.Pages)*pageSize) {
			unix.Madvise(p, advice) // best effort: before Linux 5.14 there is none
		}
	}
}

// Private returns how much of RAM is this process's own, in bytes: what no file
// backs, or was written to.
func (m *Memory) Private() (n int64, err error) {
	err = m.eachPage(func(_ int, entry uint64) {
		if entry&pagemapPresent != 0 && entry&pagemapFile == 0 {
			n += pageSize
		}
	})
	return n, err
}

// eachPage calls do for every page of RAM with its entry of the pagemap.
func (m *Memory) eachPage(do func(page int, entry uint64)) error {
	buf := make([]byte, 64<<10)
	page := 0
	for _, r := range m.regions {
		at := int64(uintptr(unsafe.Pointer(&r.host[0]))) / pageSize * pagemapEntry
		for left := len(r.host) / pageSize * pagemapEntry; left > 0; {
			n, err := m.pagemap.ReadAt(buf[:min(left, len(buf))], at)
			if err != nil {
				return fmt.Errorf("which memory is in use: %w", err)
			}
			for i := 0; i < n; i += pagemapEntry {
				do(page, binary.NativeEndian.Uint64(buf[i:]))
				page++
			}
			at, left = at+int64(n), left-n
		}
	}
	return nil
}

// eachData calls do for what a backing's file holds of RAM, holes left out.
func eachData(b Backing, do func(from, to int64)) error {
	for at, end := b.FileOffset, b.FileOffset+b.Length; at < end; {
		from, to, err := holes.Next(int(b.File.Fd()), at, end)
		if err != nil || from == end {
			return err
		}
		at = to
		do(b.Offset+from-b.FileOffset, b.Offset+at-b.FileOffset)
	}
	return nil
}
