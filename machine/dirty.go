package machine

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"vmm/machine/engine"
	"vmm/machine/ring0"
)

// Pages of guest memory are written to by three parties: the guest in KVM, which
// logs them, this process's devices, which tell by Memory.MarkDirty, and on
// interpreting hosts the executor, which tells by Memory.WritePage.

// dirtyPages are the pages that this process has written to, a bit each, by
// their number in RAM.
type dirtyPages struct {
	on   atomic.Bool
	bits []uint64
}

func (d *dirtyPages) set(page uint64) {
	word, bit := &d.bits[page/64], uint64(1)<<(page%64)
	if atomic.LoadUint64(word)&bit == 0 {
		atomic.OrUint64(word, bit)
	}
}

// Bitmap is a set of RAM's pages, a bit each.
type Bitmap []uint64

// Has reports whether a page is in the set.
func (b Bitmap) Has(page int) bool { return b[page/64]>>(page%64)&1 != 0 }

// Len is how many pages are in the set.
func (b Bitmap) Len() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// MarkDirty implements virtio.Memory.
func (m *Memory) MarkDirty(b []byte) {
	if !m.dirty.on.Load() && m.writer == nil || len(b) == 0 {
		return
	}
	at, start := uintptr(unsafe.Pointer(&b[0])), uint64(0)
	for _, r := range m.regions {
		host := uintptr(unsafe.Pointer(&r.host[0]))
		if off := uint64(at - host); at >= host && off < uint64(len(r.host)) {
			if m.writer != nil {
				m.writer.Wrote(r.gpa+off, uint64(len(b)))
			}
			if !m.dirty.on.Load() {
				return
			}
			for p := (start + off) / pageSize; p <= (start+off+uint64(len(b))-1)/pageSize; p++ {
				m.dirty.set(p)
			}
			return
		}
		start += uint64(len(r.host))
	}
}

// WritePage implements ring0.Memory.
func (m *Memory) WritePage(gpa uint64) {
	if !m.dirty.on.Load() {
		return
	}
	start := uint64(0)
	for _, r := range m.regions {
		if off := gpa - r.gpa; gpa >= r.gpa && off < uint64(len(r.host)) {
			m.dirty.set((start + off) / pageSize)
			return
		}
		start += uint64(len(r.host))
	}
}

// pages is how many pages of RAM there are.
func (m *Memory) pages() uint64 { return m.size / pageSize }

// track begins to note which pages are written to.
func (m *Memory) track() {
	m.dirty.bits = make([]uint64, (m.pages()+63)/64)
	m.dirty.on.Store(true)
}

// takeDirty returns the pages that were written to since the last time, or since
// track. What is written meanwhile is in this set or in the next one. tables is
// nil on hardware.
func (m *Memory) takeDirty(vm engine.VM, tables *ring0.Tables) (Bitmap, error) {
	out := make(Bitmap, len(m.dirty.bits))
	for i := range m.dirty.bits {
		out[i] = atomic.SwapUint64(&m.dirty.bits[i], 0)
	}
	if tables != nil {
		tables.FlushAll() // so that the executors tell again
	}
	start := uint64(0)
	for slot, r := range m.regions {
		n := uint64(len(r.host)) / pageSize
		log := make([]uint64, (n+63)/64)
		if err := vm.DirtyLog(uint32(slot), log); err != nil {
			return nil, err
		}
		for i, w := range log {
			for ; w != 0; w &= w - 1 {
				p := start + uint64(i*64) + uint64(bits.TrailingZeros64(w))
				out[p/64] |= 1 << (p % 64)
			}
		}
		start += n
	}
	return out, nil
}

// TrackDirty begins to note which pages of memory are written to, as TakeDirty
// then tells; it goes on where it was called before. ErrEnded if the machine has ended.
func (m *Machine) TrackDirty() error { return m.life.use(m.trackDirty) }

func (m *Machine) trackDirty() error {
	m.dirtyMu.Lock()
	defer m.dirtyMu.Unlock()
	if m.mem.dirty.on.Load() {
		return nil
	}
	m.mem.track()
	if m.tables != nil {
		m.tables.FlushAll()
	}
	return m.mem.register(m.vm)
}

// TakeDirty returns the pages that were written to since the last time, or since
// TrackDirty: nil if nobody keeps track. ErrEnded if the machine has ended.
func (m *Machine) TakeDirty() (dirty Bitmap, err error) {
	err = m.life.use(func() (err error) {
		dirty, err = m.takeDirty()
		return err
	})
	return dirty, err
}

func (m *Machine) takeDirty() (Bitmap, error) {
	m.dirtyMu.Lock()
	defer m.dirtyMu.Unlock()
	if !m.mem.dirty.on.Load() {
		return nil, nil
	}
	return m.mem.takeDirty(m.vm, m.tables)
}

// PrivateMemory is Memory.Private, in bytes, and 0 if the machine has ended.
func (m *Machine) PrivateMemory() (n int64) {
	m.Use(func(mem *Memory) (err error) {
		n, err = mem.Private()
		return err
	})
	return n
}
