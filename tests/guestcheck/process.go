package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// signals sends itself many and wants each handled.
func signals(map[string]string) error {
	got := make(chan os.Signal, 1)
	signal.Notify(got, unix.SIGUSR1)
	defer signal.Stop(got)
	for i := range 500 {
		if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
			return err
		}
		select {
		case <-got:
		case <-time.After(30 * time.Second):
			return fmt.Errorf("signal %d did not arrive", i)
		}
	}
	// A process that kills itself.
	err := exec.Command("/bin/sh", "-c", "kill -SEGV $$").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSEGV {
		return fmt.Errorf("kill -SEGV: %v", err)
	}
	return nil
}

// faults provokes page faults that become panics, which needs the signal
// frame with the extended state.
func faults(map[string]string) error {
	fault := func(addr uintptr) (err error) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if r := recover(); r == nil {
				err = fmt.Errorf("reading %#x went well", addr)
			}
		}()
		page := *(*unsafe.Pointer)(unsafe.Pointer(&addr))
		_ = *(*byte)(page)
		return nil
	}
	for i := range 200 {
		if err := fault(0x10000 + uintptr(i)*4096); err != nil {
			return err
		}
	}
	// An address of the kernel's half.
	return fault(0xffffffff81000000)
}

// stepping walks a process instruction by instruction, as a debugger does.
func stepping(map[string]string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.Command("/bin/sh", "-c", "exit 7")
	c.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := c.Start(); err != nil {
		return err
	}
	pid := c.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		return fmt.Errorf("the traced process: %#x, %v", int(status), err)
	}
	var last uint64
	for i := range 200 {
		if err := syscall.PtraceSingleStep(pid); err != nil {
			return err
		}
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() || status.StopSignal() != syscall.SIGTRAP {
			return fmt.Errorf("step %d: %#x, %v", i, int(status), err)
		}
		var regs syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
			return err
		}
		if i > 0 && (regs.Rip == last || regs.Rip-last > 4096 && i < 3) {
			return fmt.Errorf("step %d went from %#x to %#x", i, last, regs.Rip)
		}
		last = regs.Rip
	}
	if err := syscall.PtraceDetach(pid); err != nil {
		return err
	}
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 7 {
		return fmt.Errorf("the process ended with %#x, %v", int(status), err)
	}
	return nil
}

// threads counts with many OS threads and a lock.
func threads(map[string]string) error {
	const workers, rounds = 16, 5000
	var mu sync.Mutex
	var plain int
	var counter atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			for i := range rounds {
				mu.Lock()
				plain++
				mu.Unlock()
				counter.Add(1)
				if i%64 == 0 {
					schedYield()
				}
			}
		}()
	}
	wg.Wait()
	if plain != workers*rounds || counter.Load() != workers*rounds {
		return fmt.Errorf("counted %d and %d, want %d", plain, counter.Load(), workers*rounds)
	}
	return nil
}

// timers must not fire early, nor stay away.
func timers(map[string]string) error {
	for _, d := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond} {
		start := time.Now()
		time.Sleep(d)
		if got := time.Since(start); got < d {
			return fmt.Errorf("a sleep of %v took %v", d, got)
		}
	}
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for range 20 {
		<-t.C
	}
	return nil
}

// clock must not go backwards, from whichever CPU it is read.
func clock(map[string]string) error {
	var mu sync.Mutex
	var lastCall, lastVDSO unix.Timespec
	var err error
	boot, base := monotonicBase()
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			for i := range 20000 {
				var now unix.Timespec
				mu.Lock()
				last := &lastVDSO
				if i%2 == 0 { // the system call
					last = &lastCall
					syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&now)), 0)
				} else { // the vDSO
					now = unix.NsecToTimespec(time.Since(boot).Nanoseconds() + base)
				}
				if now.Nano() < last.Nano() && err == nil {
					err = fmt.Errorf("CLOCK_MONOTONIC went back by %d ns", last.Nano()-now.Nano())
				}
				*last = now
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return err
}

// monotonicBase returns CLOCK_MONOTONIC in nanoseconds at a time of Go's,
// which reads that clock by the vDSO. The true base is a little later.
func monotonicBase() (boot time.Time, base int64) {
	var ts unix.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Now(), ts.Nano()
}

// mappings changes page tables in every way, so that a stale translation
// anywhere shows up as wrong memory.
func mappings(map[string]string) error {
	const pages, size = 600, 600 * 4096
	for round := range byte(6) {
		b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		for i := range pages {
			if b[i*4096] != 0 {
				return fmt.Errorf("page %d of a new mapping is not empty", i)
			}
			b[i*4096] = byte(i) ^ round
		}
		// A child shares the pages; each side then writes its own.
		if err := forkWrite(b); err != nil {
			return err
		}
		for i := range pages {
			if b[i*4096] != byte(i)^round {
				return fmt.Errorf("page %d changed behind a child's back", i)
			}
		}
		if err := remap(b, round); err != nil {
			return err
		}
		if err := unix.Munmap(b); err != nil {
			return err
		}
	}
	return nil
}

// forkWrite copies the address space: the child writes to all pages and ends.
func forkWrite(b []byte) error {
	pid, _, errno := syscall.RawSyscall(syscall.SYS_FORK, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		status := uintptr(0)
		for i := 0; i < len(b); i += 4096 {
			if b[i] == 0xff {
				continue
			}
			b[i] ^= 0x55
		}
		for {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, status, 0, 0)
		}
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(int(pid), &status, 0, nil); err != nil || status != 0 {
		return fmt.Errorf("the child ended with %#x, %v", int(status), err)
	}
	return nil
}

func remap(b []byte, round byte) error {
	// What is dropped reads as zeros, what is next to it stays.
	if err := unix.Madvise(b[4096:5*4096], unix.MADV_DONTNEED); err != nil {
		return err
	}
	if b[4096] != 0 || b[4*4096] != 0 || b[5*4096] != 5^round {
		return errors.New("MADV_DONTNEED left the wrong pages")
	}
	// A page made read-only faults on a write, and not after.
	page := b[8*4096 : 9*4096]
	if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
		return err
	}
	wrote := func() (ok bool) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { ok = recover() == nil }()
		page[0] = 77
		return
	}
	if wrote() {
		return errors.New("a read-only page could be written")
	}
	if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	if !wrote() || page[0] != 77 {
		return errors.New("a page made writable again could not be written")
	}
	return nil
}

// avx holds values in all vector registers of many threads over a long time.
func avx(map[string]string) error {
	if !cpu.X86.HasAVX {
		return nil // the guest does not see it
	}
	var wg sync.WaitGroup
	var bad atomic.Int64
	for t := range uint64(6) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			for i := range uint64(15) {
				if !holdAVX(t*1e9+i, 3000000) {
					bad.Add(1)
				}
				schedYield()
			}
		}()
	}
	wg.Wait()
	if n := bad.Load(); n > 0 {
		return fmt.Errorf("YMM registers changed in %d of 90 rounds", n)
	}
	return nil
}

func schedYield() { syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
