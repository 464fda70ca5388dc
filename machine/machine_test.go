package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"vmm/bootloader"
	"vmm/internal/vmem"
	"vmm/kvm"
	"vmm/virtio"
	"vmm/virtio/rng"
)

func needKVM(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(kvm.DevicePath); err != nil {
		t.Skip("no /dev/kvm on this machine")
	}
}

// payload is an ELF kernel of a few bytes of 64-bit code at 16 MiB.
func payload(t testing.TB, code ...byte) *bootloader.Kernel {
	t.Helper()
	const entry = 16 << 20
	le := binary.LittleEndian
	b := make([]byte, 120, 120+len(code))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	le.PutUint32(b[64:], 1)
	le.PutUint32(b[68:], 7)
	le.PutUint64(b[72:], 120)
	le.PutUint64(b[80:], entry)
	le.PutUint64(b[88:], entry)
	le.PutUint64(b[96:], uint64(len(code)))
	le.PutUint64(b[104:], uint64(len(code)))
	k, err := bootloader.Parse(append(b, code...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Pieces of code for payloads.
var (
	codePowerOff = []byte{0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef} // mov dx, 0x604; mov ax, 0x3400; out dx, ax
	codeForever  = []byte{0xeb, 0xfe}
	codeHalt     = []byte{0xfa, 0xf4}                      // cli; hlt
	codeDebug    = []byte{0x66, 0xba, 1, 5, 0xb0, 7, 0xee} // isa-debug-exit with 7
	codeReset    = []byte{0xb0, 0xfe, 0xe6, 0x64}
	codeSay      = []byte{0x66, 0xba, 0xf8, 3, 0xb0, 'x', 0xee} // mov dx, 0x3f8; mov al, 'x'; out dx, al
	codeTriple   = []byte{0x0f, 0x0b}                           // ud2 without an IDT
)

func runPayload(t *testing.T, cfg Config, code []byte, during func(m *Machine)) (Result, error) {
	t.Helper()
	needKVM(t)
	cfg.Kernel = payload(t, code...)
	if cfg.Memory == 0 {
		cfg.Memory = 32 << 20
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if during != nil {
		go during(m)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return m.Run(ctx)
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		code []byte
		end  End
	}{
		{"power off", codePowerOff, EndPowerOff},
		{"reset", codeReset, EndReset},
		{"debug exit", codeDebug, EndDebugExit},
		{"triple fault without a word", codeTriple, EndCrash},
		{"triple fault as a reset", append(codeSay, codeTriple...), EndReset},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := runPayload(t, Config{}, append(c.code, codeForever...), nil)
			if err != nil || r.End != c.end {
				t.Errorf("%+v, %v", r, err)
			}
			if c.end == EndDebugExit && r.Status != 15 {
				t.Errorf("status %d", r.Status)
			}
		})
	}
}

// TestStop stops guests that loop and guests that sleep, by each means.
func TestStop(t *testing.T) {
	for name, code := range map[string][]byte{"loop": codeForever, "halt": codeHalt} {
		t.Run(name, func(t *testing.T) {
			r, err := runPayload(t, Config{CPUs: 3}, code, func(m *Machine) {
				time.Sleep(20 * time.Millisecond)
				m.Stop()
			})
			if err != nil || r.End != EndStopped {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// stuck is a console that takes nothing.
type stuck chan struct{}

func (s stuck) Write(p []byte) (int, error) { <-s; return len(p), nil }

// TestStuckConsole ends a guest that waits for its console.
func TestStuckConsole(t *testing.T) {
	console := make(stuck)
	defer close(console)
	code := []byte{0x66, 0xba, 0xf8, 3, 0xee, 0xeb, 0xfd} // mov dx, 0x3f8; out dx, al; jmp to the out
	r, err := runPayload(t, Config{Console: console}, code, func(m *Machine) {
		go m.uart.Out(0, make([]byte, 200<<10)) // more than fits
		time.Sleep(100 * time.Millisecond)
		m.Stop()
	})
	if err == nil || r.End != EndStopped {
		t.Errorf("%+v, %v: no word of the lost output", r, err)
	}
}

// TestPause looks at a counter in guest memory.
func TestPause(t *testing.T) {
	const counter = 0x10000
	code := []byte{0xf0, 0x48, 0xff, 0x04, 0x25, 0, 0, 1, 0, 0xeb, 0xf5} // lock inc qword [counter]; jmp back
	_, err := runPayload(t, Config{}, code, func(m *Machine) {
		defer m.Stop()
		read := func() uint64 {
			b, _ := m.mem.Slice(counter, 8)
			return binary.LittleEndian.Uint64(b)
		}
		goesOn := func(from uint64) bool {
			for deadline := time.Now().Add(10 * time.Second); read() == from; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("does not go on from %d", from)
					return false
				}
			}
			return true
		}
		if !goesOn(0) {
			return
		}
		for range 5 {
			time.Sleep(10 * time.Millisecond)
			resume := m.Pause()
			before := read()
			time.Sleep(10 * time.Millisecond)
			if after := read(); after != before {
				t.Errorf("paused at %d, then %d", before, after)
			}
			resume()
			resume() // once too often
			if !goesOn(before) {
				return
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestNothingIsLeft runs machines and counts what the process holds.
func TestNothingIsLeft(t *testing.T) {
	count := func() (goroutines, fds int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(entries)
	}
	runPayload(t, Config{}, codePowerOff, nil) // what is made once
	g, f := count()
	for range 5 {
		if _, err := runPayload(t, Config{CPUs: 2}, append(codePowerOff, codeForever...), nil); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g2, f2 := count()
		if g2 <= g && f2 <= f {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines %d -> %d, file descriptors %d -> %d", g, g2, f, f2)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for want, cfg := range map[string]Config{
		"no kernel":           {},
		"65 CPUs":             {CPUs: 65, Kernel: payload(t)},
		"1 MiB of memory":     {Memory: 1 << 20, Kernel: payload(t)},
		"whole number of pag": {Memory: 32<<20 + 5, Kernel: payload(t)},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestMemory(t *testing.T) {
	m, err := newMemory(5<<30, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	for _, c := range []struct {
		gpa, n uint64
		ok     bool
	}{
		{0, 1, true}, {lowRAMEnd - 8, 8, true}, {lowRAMEnd - 8, 9, false}, {lowRAMEnd, 1, false},
		{highRAM, 8, true}, {highRAM + 2<<30 - 1, 1, true}, {highRAM + 2<<30, 1, false},
		{^uint64(0), 2, false}, {8, ^uint64(0), false}, {0, 0, true},
	} {
		b, err := m.Slice(c.gpa, c.n)
		if (err == nil) != c.ok || err == nil && uint64(len(b)) != c.n || err != nil && !errors.Is(err, ErrNotRAM) {
			t.Errorf("Slice(%#x, %d): %d bytes, %v", c.gpa, c.n, len(b), err)
		}
	}
	for _, r := range m.regions {
		if at := uint64(uintptr(unsafe.Pointer(&r.host[0]))); at%vmem.GiantPage != r.gpa%vmem.GiantPage {
			t.Errorf("RAM at %#x is at %#x in the host: no huge pages", r.gpa, at)
		}
	}
	if m.Page(lowRAMEnd) != nil || m.Page(highRAM) == nil || m.Page(1<<63) != nil {
		t.Error("Page")
	}
}

// TestTransportArgs looks for kernel arguments in a guest's memory.
func TestTransportArgs(t *testing.T) {
	needKVM(t)
	for _, c := range []struct {
		transport   Transport
		given, want string
		early       bool // Linux looks for old chipsets
	}{
		{"", "", "pci=noearly console=ttyS0", false},
		{PCI, "pci=nommconf", "pci=nommconf", true},
		{MMIO, "", "console=ttyS0", true},
		{MMIOCmdline, "", "virtio_mmio.device=4096@0x", true},
	} {
		m, err := New(Config{Kernel: payload(t), Memory: 32 << 20, Transport: c.transport, Cmdline: c.given, Devices: []virtio.Device{rng.New()}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.mem.Slice(0, 640<<10)
		if err != nil || !bytes.Contains(b, []byte(c.want)) || bytes.Contains(b, []byte("pci=noearly")) == c.early {
			t.Errorf("%q, %q: %v, no %q", c.transport, c.given, err, c.want)
		}
		m.Close()
	}
}

func TestGuestCPUID(t *testing.T) {
	host := []kvm.CPUIDEntry{{Function: 1, EBX: 0x12340800, ECX: 1 << 5}, {Function: 0xb}, {Function: 0xb, Index: 1},
		{Function: 0x40000001, EAX: 0xffffffff}, {Function: 0x80000008, ECX: 0xffff}, {Function: 0x80000001, ECX: 1<<2 | 1<<23},
		{Function: 0x8000000a, EAX: 1, EBX: 8, EDX: 1}, {Function: 0xa, EAX: 0x08300402}}
	for _, interpreted := range []bool{false, true} {
		offer := cpuOffer{cpus: 6, tscDeadline: true, noHypercalls: interpreted}
		ids := offer.cpuid(host, 5)
		if e := ids[0]; e.EBX != 0x05060800 || e.ECX != 1<<31|1<<24 || e.EDX != 1<<28 {
			t.Errorf("leaf 1: %+v", e)
		}
		if e := ids[2]; e.EAX != 3 || e.EBX != 6 || e.ECX != 0x201 || e.EDX != 5 {
			t.Errorf("leaf 0xb: %+v", e)
		}
		if e := ids[4]; e.ECX != 0x3f05 {
			t.Errorf("leaf 0x80000008: %+v", e)
		}
		if got := ids[3].EAX == 0xffffffff; got == interpreted {
			t.Errorf("KVM's features: %#x", ids[3].EAX)
		}
		if ids[5].ECX != 0 || ids[6].EAX|ids[6].EBX|ids[6].EDX != 0 || ids[7].EAX != 0 {
			t.Errorf("virtualization or counters are offered: %+v", ids[5:])
		}
	}
	offer := cpuOffer{cpus: 1, nested: true, perfmon: true}
	ids := offer.cpuid(host, 0)
	if ids[0].ECX&(1<<5) == 0 || ids[5] != host[5] || ids[6] != host[6] || ids[7] != host[7] {
		t.Errorf("virtualization and counters are missing: %+v", ids)
	}
	if host[0].EBX != 0x12340800 {
		t.Error("the host's list was changed")
	}
}

// TestFirmwareMSRs turns VMX on where the guest has it.
func TestFirmwareMSRs(t *testing.T) {
	for _, c := range []struct {
		ecx  uint32 // of leaf 1
		want []uint64
	}{{0, nil}, {1 << 5, []uint64{5}}} {
		var got []uint64
		for _, m := range firmwareMSRs([]kvm.CPUIDEntry{{Function: 1, ECX: c.ecx}}) {
			if m.Index == 0x3a { // IA32_FEATURE_CONTROL
				got = append(got, m.Data)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("leaf 1 with ECX %#x: %v, want %v", c.ecx, got, c.want)
		}
	}
}

// echo answers with its own number.
type echo byte

func (e echo) In(offset uint16, data []byte)    { data[0] = byte(e) + byte(offset) }
func (e echo) Out(uint16, []byte)               {}
func (e echo) Read(offset uint64, data []byte)  { data[0] = byte(e) + byte(offset) }
func (e echo) Write(offset uint64, data []byte) {}

func TestBus(t *testing.T) {
	var b portBus
	for _, p := range []struct{ start, size uint64 }{{0x60, 5}, {0x3f8, 8}, {0x20, 2}, {0x65, 1}} {
		if err := b.add("dev", p.start, p.size, echo(p.start)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []struct{ start, size uint64 }{{0x64, 1}, {0x3f0, 9}, {0x3ff, 1}, {0, 0x21}, {0, 0x1000}} {
		var overlap *OverlapError
		if err := b.add("new", p.start, p.size, echo(0)); !errors.As(err, &overlap) {
			t.Errorf("%#x+%d: %v", p.start, p.size, err)
		}
	}
	if err := b.add("none", 5, 0, echo(0)); err == nil {
		t.Error("an empty range")
	}
	for port, want := range map[uint16]byte{0x60: 0x60, 0x64: 0x64, 0x65: 0x65, 0x21: 0x21, 0x3ff: 0xff, 0x66: 0xff, 0: 0xff, 0xffff: 0xff} {
		d := []byte{0}
		if b.access(port, d, false); d[0] != want {
			t.Errorf("port %#x: %#x, want %#x", port, d[0], want)
		}
		b.access(port, d, true)
	}
	var m mmioBus
	m.add("x", 1<<32, 16, echo(1))
	d := []byte{0}
	if m.access(1<<32+3, d, false); d[0] != 4 {
		t.Errorf("MMIO: %#x", d[0])
	}
	if m.access(5, d, false); d[0] != 0xff {
		t.Errorf("MMIO of nobody: %#x", d[0])
	}
}

func TestPanicWatch(t *testing.T) {
	for _, c := range []struct {
		said              []string
		faulted, panicked bool
	}{
		{[]string{"fine\nKernel pan", "ic - not sync", "ing: test\n"}, true, true},
		{[]string{"[    1.0] reboot: Restarting system\n"}, false, false},
		{[]string{"Oo", "ps: 0002 [#1] SMP\n", "more"}, true, false},
		{[]string{"BUG: kernel NULL pointer dereference, address: 0\n"}, true, false},
		{[]string{"general protection fault, probably for non-canonical address\n"}, true, false},
		{[]string{"traps: x[12] general protection fault ip:401000 sp:7ffd error:0\n"}, false, false},
		{[]string{"traps: x[12] trap invalid opcode ip:401000\n", "x[13]: segfault at 0 ip 0\n"}, false, false},
		{[]string{"PANIC: early exception 0x0d IP 10:ffffffff\n"}, true, false},
		{nil, false, false},
	} {
		w := &panicWatch{out: new(strings.Builder)}
		for _, s := range c.said {
			w.Write([]byte(s))
		}
		if w.faulted.Load() != c.faulted || w.panicked.Load() != c.panicked || w.spoke.Load() != (c.said != nil) {
			t.Errorf("%q: faulted %v, panicked %v", c.said, w.faulted.Load(), w.panicked.Load())
		}
	}
}

// BenchmarkPortExit and BenchmarkMMIOExit measure an exit to userspace and
// back, from a loop in guest user mode where that runs natively.
func BenchmarkPortExit(b *testing.B) { benchmarkExits(b, []byte{0x66, 0xba, 0x80, 0, 0xee}) } // out 0x80, al

// BenchmarkMMIOExit is a write to where nothing is.
func BenchmarkMMIOExit(b *testing.B) {
	benchmarkExits(b, []byte{0xbf, 0, 0, 0, 0xd0, 0x88, 0x07}) // mov edi, 0xd0000000; mov [rdi], al
}

func benchmarkExits(b *testing.B, code []byte) {
	needKVM(b)
	code = append(code, 0xeb, byte(-len(code)-2))
	m, err := New(Config{Kernel: payload(b, code...), Memory: 32 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	v := m.cpus[0]
	step := v.runNative
	if v.in != nil {
		step = v.in.run
	}
	count := func() uint64 { return m.exits[kvm.ExitIO].Load() + m.exits[kvm.ExitMMIO].Load() }
	b.ReportAllocs()
	b.ResetTimer()
	for start := count(); count()-start < uint64(b.N); {
		if err := step(); err != nil {
			b.Fatal(err)
		}
	}
}
