package ring0

import "slices"

// Watchpoint is a range of linear addresses whose accesses stop Run (StopWatchpoint), behind
// the instruction.
type Watchpoint struct {
	Addr, Size uint64 // bytes
	Reads      bool   // not just writes
}

// SetWatchpoints has Run stop for accesses to some ranges. Their pages are never in the TLB, so
// that each access to them is seen.
func (c *CPU) SetWatchpoints(w []Watchpoint) {
	c.debuggers = len(w)
	c.setWatchpoints(slices.Clip(w))
}

// setWatchpoints watches the debugger's ranges and the guest's own.
func (c *CPU) setWatchpoints(debuggers []Watchpoint) {
	w := c.armOwn(slices.Clip(debuggers))
	if !slices.Equal(w, c.watchpoints) {
		c.watchpoints = w
		c.FlushTLB()
	}
}

// Watched is the number of the watchpoint of the last StopWatchpoint, of those that were set.
func (c *CPU) Watched() int { return c.watched }

// inWatchedPage reports whether an address is in the page of a watchpoint.
func (c *CPU) inWatchedPage(addr uint64) bool {
	for i := range c.watchpoints {
		w := &c.watchpoints[i]
		if addr>>12 >= w.Addr>>12 && addr>>12 <= (w.Addr+w.Size-1)>>12 {
			return true
		}
	}
	return false
}

// touch notes an access that may be one of a watchpoint.
func (c *CPU) touch(addr uint64, write bool) {
	c.touched = append(c.touched, touched{addr, write})
}

type touched struct {
	addr  uint64
	write bool
}

// watch looks whether an instruction that was done has met a watchpoint of the debugger's, and
// notes which of the guest's own.
func (c *CPU) watch(in *inst) bool {
	size := uint64(max(in.size, in.form.bytes, 1))
	hit := false
	for _, a := range c.touched {
		for i, w := range c.watchpoints {
			switch met := (a.write || w.Reads) && a.addr < w.Addr+w.Size && w.Addr < a.addr+size; {
			case !met:
			case i >= c.debuggers:
				c.own.met |= 1 << c.own.numbers[i-c.debuggers]
			case !hit:
				c.watched, hit = i, true
			}
		}
	}
	c.touched = c.touched[:0]
	return hit
}
