package ring0

import "unsafe"

// chunk is how much a repeated instruction does before interrupts get a
// chance, in elements.
const chunk = 8192

// stride returns the distance between elements, negative with DF.
func (c *CPU) stride(size uint8) uint64 {
	if c.sys&flagDF != 0 {
		return -uint64(size)
	}
	return uint64(size)
}

// count returns how many elements to do now.
func (c *CPU) count(in *inst) uint64 {
	if in.rep == repNone {
		return 1
	}
	return min(c.r[rCX], chunk)
}

// repeated accounts for n elements done: where some are left, the instruction
// is executed again.
func (c *CPU) repeated(in *inst, n uint64) status {
	if in.rep == repNone {
		return done
	}
	if c.r[rCX] -= n; c.r[rCX] != 0 {
		c.r[rIP] -= uint64(in.len)
	}
	return done
}

// run returns how many elements of size lie from addr to the end of its page,
// at most n; 0 where the first crosses it or the direction is down.
func (c *CPU) run(addr uint64, size uint8, n uint64) uint64 {
	if c.sys&flagDF != 0 || c.slow || c.inWatchedPage(addr) {
		return 0
	}
	return min(n, (pageSize-addr&pageMask)/uint64(size))
}

func execMovs(c *CPU, in *inst) status {
	n := c.count(in)
	if n == 0 {
		return done
	}
	src, dst := c.r[rSI]+c.base[in.seg], c.r[rDI]
	k := c.run(dst, in.size, c.run(src, in.size, n))
	if k == 0 {
		v, ok := c.load(src, in.size)
		if !ok || !c.store(dst, v, in.size) {
			return handOver
		}
		d := c.stride(in.size)
		c.r[rSI] += d
		c.r[rDI] += d
		return c.repeated(in, 1)
	}
	// The destination comes first: filling its entry may evict the source's.
	to := c.writable(dst)
	if to == nil {
		return handOver
	}
	from := c.readable(src)
	if from == nil {
		return handOver
	}
	bytes := k * uint64(in.size)
	// Overlapping upwards, at whatever addresses the guest has it: element by element.
	if d := uint64(uintptr(to) - uintptr(from)); d < bytes && d != 0 {
		for i := uint64(0); i < bytes; i += uint64(in.size) {
			storeHost(unsafe.Add(to, i), loadHost(unsafe.Add(from, i), in.size), in.size)
		}
	} else {
		copy(unsafe.Slice((*byte)(to), bytes), unsafe.Slice((*byte)(from), bytes))
	}
	c.r[rSI] += bytes
	c.r[rDI] += bytes
	return c.repeated(in, k)
}

func execStos(c *CPU, in *inst) status {
	n := c.count(in)
	if n == 0 {
		return done
	}
	dst := c.r[rDI]
	k := c.run(dst, in.size, n)
	if k == 0 {
		if !c.store(dst, c.r[rAX], in.size) {
			return handOver
		}
		c.r[rDI] += c.stride(in.size)
		return c.repeated(in, 1)
	}
	to := c.writable(dst)
	if to == nil {
		return handOver
	}
	v, bytes := c.get(rAX, in.size), k*uint64(in.size)
	if v == 0 {
		clear(unsafe.Slice((*byte)(to), bytes))
	} else {
		for i := uint64(0); i < bytes; i += uint64(in.size) {
			storeHost(unsafe.Add(to, i), v, in.size)
		}
	}
	c.r[rDI] += bytes
	return c.repeated(in, k)
}

func execLods(c *CPU, in *inst) status {
	if c.count(in) == 0 {
		return done
	}
	v, ok := c.load(c.r[rSI]+c.base[in.seg], in.size)
	if !ok {
		return handOver
	}
	c.set(rAX, in.size, v)
	c.r[rSI] += c.stride(in.size)
	return c.repeated(in, 1)
}

// compared ends one step of a comparison, whose flags may end the repetition.
func (c *CPU) compared(in *inst) status {
	if in.rep == repNone {
		return done
	}
	if c.r[rCX]--; c.r[rCX] != 0 && (c.zv == 0) == (in.rep == repE) {
		c.r[rIP] -= uint64(in.len)
	}
	return done
}

func execScas(c *CPU, in *inst) status {
	if c.count(in) == 0 {
		return done
	}
	v, ok := c.load(c.r[rDI], in.size)
	if !ok {
		return handOver
	}
	c.sub(c.get(rAX, in.size), v, 0, in.size)
	c.r[rDI] += c.stride(in.size)
	return c.compared(in)
}

func execCmps(c *CPU, in *inst) status {
	if c.count(in) == 0 {
		return done
	}
	a, ok := c.load(c.r[rSI]+c.base[in.seg], in.size)
	if !ok {
		return handOver
	}
	b, ok := c.load(c.r[rDI], in.size)
	if !ok {
		return handOver
	}
	c.sub(a, b, 0, in.size)
	d := c.stride(in.size)
	c.r[rSI] += d
	c.r[rDI] += d
	return c.compared(in)
}
