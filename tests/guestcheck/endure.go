package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// endurance keeps a guest busy while it is saved, restored, copied and moved: endure=FILE
// gets a line of what was done and of what went wrong, again and again. disk=DEV is
// written to, echo=ADDRESS gives back what it is sent; without them these parts are
// left out. It runs until the guest ends. slow=N is how many times slower than usual the
// host is.
type endurance struct {
	slow float64

	cpu, ticks, blocks, sent, resets atomic.Int64
	latest                           atomic.Int64 // of the clock, on all CPUs

	mu  sync.Mutex
	bad []string
}

func endure(want map[string]string) error {
	slow, err := strconv.ParseFloat(want["slow"], 64)
	if err != nil {
		return fmt.Errorf("slow: %w", err)
	}
	e := &endurance{slow: slow}
	for cpu := range runtime.NumCPU() {
		go e.compute()
		go e.watchClock(cpu)
	}
	go e.tick()
	if dev := want["disk"]; dev != "" {
		go e.writeBlocks(dev)
	}
	if addr := want["echo"]; addr != "" {
		go e.echo(addr)
	}
	for {
		e.mu.Lock()
		line := fmt.Sprintf("cpu=%d ticks=%d blocks=%d sent=%d resets=%d bad=%d %q\n", e.cpu.Load(), e.ticks.Load(), e.blocks.Load(),
			e.sent.Load(), e.resets.Load(), len(e.bad), e.bad)
		e.mu.Unlock()
		if err := os.WriteFile(want["endure"]+".new", []byte(line), 0o644); err != nil {
			return err
		}
		if err := os.Rename(want["endure"]+".new", want["endure"]); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// patience is how long to wait on this host for what takes at most d elsewhere.
func (e *endurance) patience(d time.Duration) time.Duration {
	return time.Duration(float64(d) * e.slow)
}

func (e *endurance) fail(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.bad) < 10 {
		e.bad = append(e.bad, fmt.Sprintf(format, args...))
	}
}

// compute does the same with integers and floats each time.
func (e *endurance) compute() {
	work := func() ([32]byte, float64) {
		sum, f := sha256.Sum256(nil), 0.5
		for i := range 2000 {
			sum = sha256.Sum256(sum[:])
			f = math.Sqrt(f*float64(i+1)) + math.Sin(f)
		}
		return sum, f
	}
	sum, f := work()
	for {
		if s, g := work(); s != sum || g != f {
			e.fail("computed %x %v, before %x %v", s[:4], g, sum[:4], f)
		}
		e.cpu.Add(1)
	}
}

// watchClock holds that the monotonic clock never goes back, not between CPUs
// either, and does not stand still.
func (e *endurance) watchClock(cpu int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		e.fail("affinity: %v", err)
	}
	for {
		before := e.latest.Load()
		var ts unix.Timespec
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		now := ts.Nano()
		if now < before {
			e.fail("CPU %d: the clock went back by %d ns", cpu, before-now)
		}
		e.latest.CompareAndSwap(before, max(now, before))
		time.Sleep(time.Millisecond)
	}
}

// tick counts a timer's ticks, of which none comes long after its time by the
// guest's own clock.
func (e *endurance) tick() {
	const every = 5 * time.Millisecond
	t := time.NewTicker(every)
	last := time.Now()
	for range t.C {
		now := time.Now()
		if d := now.Sub(last); d > e.patience(20*time.Second) {
			e.fail("a timer was %v late", d)
		}
		last = now
		e.ticks.Add(1)
	}
}

const blockSize = 4096

// writeBlocks writes blocks of a disk and reads others, past the page cache.
func (e *endurance) writeBlocks(dev string) {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		e.fail("%v", err)
		return
	}
	buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		e.fail("%v", err)
		return
	}
	written := map[int64]uint64{}
	for n := uint64(1); ; n++ {
		at := rand.Int64N(1000)
		fill(buf, at, n)
		if _, err := f.WriteAt(buf, at*blockSize); err != nil {
			e.fail("writing block %d: %v", at, err)
		}
		written[at] = n
		at = rand.Int64N(1000)
		if n := written[at]; n != 0 {
			if _, err := f.ReadAt(buf, at*blockSize); err != nil {
				e.fail("reading block %d: %v", at, err)
			}
			expect := make([]byte, blockSize)
			if fill(expect, at, n); !bytes.Equal(buf, expect) {
				e.fail("block %d is not what was written: %x, want %x", at, buf[:16], expect[:16])
			}
		}
		e.blocks.Add(1)
	}
}

func fill(b []byte, at int64, n uint64) {
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(at))
		binary.LittleEndian.PutUint64(b[i+8:], n)
	}
}

// echo sends to an echo and compares. A connection may be reset, but must not hang
// or give back anything else.
func (e *endurance) echo(addr string) {
	chunk := make([]byte, 64<<10)
	back := make([]byte, len(chunk))
	for {
		c, err := net.DialTimeout("tcp", addr, e.patience(30*time.Second))
		if err != nil {
			e.fail("connecting: %v", err)
			time.Sleep(time.Second)
			continue
		}
		for n := uint64(1); ; n++ {
			fill(chunk, 7, n)
			c.SetDeadline(time.Now().Add(e.patience(60 * time.Second)))
			if _, err = c.Write(chunk); err == nil {
				_, err = io.ReadFull(c, back)
			}
			if err != nil {
				break
			}
			if !bytes.Equal(chunk, back) {
				e.fail("the echo of chunk %d is another one", n)
			}
			e.sent.Add(1)
		}
		c.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			e.fail("the connection hung: %v", err)
		}
		e.resets.Add(1)
	}
}
