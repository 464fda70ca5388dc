package machine

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"vmm/kvm"
)

// Where the guest of TestDebugger has what. Its code is at the entry of payload.
const (
	debugCode  = 16 << 20
	debugIDT   = debugCode + 0x1000
	debugStack = debugCode + 0x3000
	debugNotes = debugCode + 0x4000 // of its handlers
	debugData  = debugCode + 0x5000
)

// assembler puts code together.
type assembler struct{ code []byte }

func (a *assembler) here() uint64 { return debugCode + uint64(len(a.code)) }
func (a *assembler) put(code ...any) { // bytes as int, and addresses as uint64 of which 4 bytes are put
	for _, c := range code {
		switch c := c.(type) {
		case int:
			a.code = append(a.code, byte(c))
		case uint64:
			a.code = binary.LittleEndian.AppendUint32(a.code, uint32(c))
		case []byte:
			a.code = append(a.code, c...)
		}
	}
}

// handler notes the return address and DR6 of an exception, counts it, and goes on
// without single-stepping. It returns where it is.
func (a *assembler) handler(notes uint64) uint64 {
	at := a.here()
	a.put(0x50)                                       // push rax
	a.put(0x48, 0x8b, 0x44, 0x24, 8)                  // mov rax, [rsp+8]
	a.put(0x48, 0x89, 0x04, 0x25, notes+8)            // mov [notes+8], rax
	a.put(0x0f, 0x21, 0xf0)                           // mov rax, dr6
	a.put(0x48, 0x89, 0x04, 0x25, notes+16)           // mov [notes+16], rax
	a.put(0x48, 0xff, 0x04, 0x25, notes)              // inc qword [notes]
	a.put(0x48, 0x81, 0x64, 0x24, 0x18, ^uint64(256)) // and qword [rsp+24], ~TF
	a.put(0x58, 0x48, 0xcf)                           // pop rax; iretq
	return at
}

// gateTo writes an interrupt gate of 64-bit mode (SDM 3, 6.14.1).
func gateTo(idt []byte, vector int, cs uint16, handler uint64) {
	g := idt[16*vector:]
	binary.LittleEndian.PutUint64(g, handler&0xffff|uint64(cs)<<16|0x8e00<<32|handler>>16<<48)
	binary.LittleEndian.PutUint64(g[8:], handler>>32)
}

// debugPlaces are addresses in the guest's code.
type debugPlaces struct{ int3, soft, hard, afterWrite, afterRead, stepped, last uint64 }

// newDebugGuest makes a guest that has an int3 and single steps of its own, between
// places for breakpoints.
func newDebugGuest(t *testing.T) (*Machine, debugPlaces) {
	var a assembler
	var p debugPlaces
	a.put(0x48, 0xc7, 0xc4, uint64(debugStack))           // mov rsp, stack
	a.put(0x0f, 0x01, 0x1c, 0x25, uint64(debugIDT+0x800)) // lidt
	p.int3 = a.here()
	a.put(0xcc, 0x90)
	p.soft = a.here()
	a.put(0x90, 0x90)
	p.hard = a.here()
	a.put(0x90)
	a.put(0xc6, 0x04, 0x25, uint64(debugData+9), 5) // mov byte [data+9], 5
	p.afterWrite = a.here()
	a.put(0x90)
	a.put(0x8a, 0x04, 0x25, uint64(debugData+20)) // mov al, [data+20]
	p.afterRead = a.here()
	a.put(0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0x90) // pushfq; or byte [rsp+1], TF; popfq; nop
	p.stepped = a.here()
	a.put(0x90)
	p.last = a.here()
	a.put(0x90, 0x90)
	a.put(codePowerOff, codeForever)
	bp, db := a.handler(debugNotes), a.handler(debugNotes+0x100)

	m, err := New(Config{Kernel: payload(t, a.code...), Memory: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.cpus[0].engine.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	idt, err := m.mem.Slice(debugIDT, 0x1000)
	if err != nil {
		t.Fatal(err)
	}
	gateTo(idt, vectorBP, s.CS.Selector, bp)
	gateTo(idt, vectorDB, s.CS.Selector, db)
	binary.LittleEndian.PutUint16(idt[0x800:], 0x7ff)
	binary.LittleEndian.PutUint64(idt[0x802:], debugIDT)
	return m, p
}

// needIntercepts skips the test where the CPU does not give KVM what breakpoints are
// made of: an emulated one may not. It asks KVM, not the debugger.
func needIntercepts(t *testing.T) {
	t.Helper()
	needKVM(t)
	for _, c := range []struct {
		what string
		code []byte
		g    kvm.GuestDebug
	}{
		{"int3", []byte{int3}, kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP}},
		{"debug registers", []byte{0x90, 0x90}, kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseHWBP,
			DebugReg: [8]uint64{0: debugCode + 1, 7: dr7Set | dr7Global}}},
	} {
		m, err := New(Config{Kernel: payload(t, append(c.code, codeTriple...)...), Memory: 32 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if m.Interpreted() {
			t.Skip("this host interprets the guest's kernel mode, and has no such breakpoints")
		}
		v := m.cpus[0].engine
		if err := v.SetGuestDebug(&c.g); err != nil {
			t.Fatal(err)
		}
		for err = v.Run(); err != nil && interruptedRun(err); err = v.Run() {
		}
		switch {
		case err != nil:
			t.Fatal(err)
		case v.Shared().ExitReason == kvm.ExitShutdown:
			t.Skipf("this host's CPU does not intercept a guest's %s", c.what)
		case v.Shared().ExitReason != kvm.ExitDebug:
			t.Fatalf("KVM exit %v", v.Shared().ExitReason)
		}
	}
}

// TestDebugger has a debugger's breakpoints beside a guest's own exceptions.
func TestDebugger(t *testing.T) {
	needIntercepts(t)
	m, p := newDebugGuest(t)
	d := m.Debugger()
	if err := d.Attach(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	type ended struct {
		Result
		err error
	}
	end := make(chan ended, 1)
	go func() {
		r, err := m.Run(ctx)
		end <- ended{r, err}
	}()
	note := func(at uint64) uint64 {
		b, err := m.mem.Slice(at, 8)
		if err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint64(b)
	}
	onto := func(step int, want DebugEvent, rip uint64) {
		t.Helper()
		if err := d.Resume(step); err != nil {
			t.Fatal(err)
		}
		got := d.Wait()
		if got.Reason == StopEnded {
			t.Fatalf("the machine ended, not %+v: %+v", want, <-end)
		}
		r, _, err := d.Registers(0)
		if err != nil {
			t.Fatal(err)
		}
		if got != want || r.RIP != rip {
			t.Fatalf("stopped for %+v at %#x, want %+v at %#x", got, r.RIP, want, rip)
		}
	}
	hit := func(b Breakpoint, addr uint64) DebugEvent { return hitAt(b, addr).event }
	set := func(b Breakpoint) Breakpoint {
		t.Helper()
		if err := d.SetBreakpoint(0, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	soft, hard := set(Breakpoint{Kind: BreakSoftware, Addr: p.soft}), set(Breakpoint{Kind: BreakHardware, Addr: p.hard})
	write, access := set(Breakpoint{BreakWrite, debugData + 8, 8}), set(Breakpoint{BreakAccess, debugData + 20, 4})
	last := set(Breakpoint{Kind: BreakSoftware, Addr: p.last})

	onto(-1, hit(soft, p.soft), p.soft)
	if n, rip := note(debugNotes), note(debugNotes+8); n != 1 || rip != p.int3+1 {
		t.Errorf("the guest had %d int3, returning to %#x; want one and %#x", n, rip, p.int3+1)
	}
	onto(-1, hit(soft, p.soft), p.soft) // it still stands there
	if err := d.ClearBreakpoint(soft); err != nil {
		t.Fatal(err)
	}
	onto(-1, hit(hard, p.hard), p.hard)
	if err := d.ClearBreakpoint(hard); err != nil {
		t.Fatal(err)
	}
	onto(-1, hit(write, debugData+8), p.afterWrite)
	onto(-1, hit(access, debugData+20), p.afterRead)
	onto(-1, hit(last, p.last), p.last)
	if n, rip, dr6 := note(debugNotes+0x100), note(debugNotes+0x108), note(debugNotes+0x110); n != 1 || rip != p.stepped || dr6&0xf00f != dr6Step {
		t.Errorf("the guest had %d #DB, returning to %#x, with DR6 %#x; want one, %#x, and its step", n, rip, dr6, p.stepped)
	}
	if n := note(debugNotes); n != 1 {
		t.Errorf("the guest had %d int3", n)
	}
	if err := d.ClearBreakpoint(last); err != nil {
		t.Fatal(err)
	}
	onto(0, DebugEvent{Reason: StopStep}, p.last+1)
	d.Detach()
	if e := <-end; e.err != nil || e.End != EndPowerOff {
		t.Errorf("the end: %+v", e)
	}
}

// TestPatches sets breakpoints in software on code that changes.
func TestPatches(t *testing.T) {
	needKVM(t)
	m, err := New(Config{Kernel: payload(t, 0x90, int3, 0x90, 0x90), Memory: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Interpreted() {
		t.Skip("on this host a breakpoint changes no memory")
	}
	d := m.Debugger()
	if err := d.Attach(); err != nil {
		t.Fatal(err)
	}
	code, err := m.mem.Slice(debugCode, 4)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i uint64) Breakpoint { return Breakpoint{Kind: BreakSoftware, Addr: debugCode + i} }
	for i := range uint64(3) {
		for range 2 { // the second does not take the first for the guest's
			if err := d.SetBreakpoint(0, at(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if string(code) != "\xcc\xcc\xcc\x90" {
		t.Errorf("with breakpoints: % x", code)
	}
	code[2] = 0xf4 // the guest's, over a breakpoint
	for i := range uint64(4) {
		if err := d.ClearBreakpoint(at(i)); err != nil {
			t.Error(err)
		}
	}
	if string(code) != "\x90\xcc\xf4\x90" {
		t.Errorf("without: % x", code)
	}
	if err := d.SetBreakpoint(0, Breakpoint{Kind: BreakSoftware, Addr: 1 << 46}); err == nil {
		t.Error("a breakpoint on nothing")
	}
	if err := d.SetBreakpoint(0, at(0)); err != nil {
		t.Fatal(err)
	}
	if d.Detach(); code[0] != 0x90 {
		t.Errorf("detached: % x", code)
	}
}

// written notes what a VM is told of.
type written []uint64

// Wrote implements engine.Writer.
func (w *written) Wrote(gpa, n uint64) { *w = append(*w, gpa, n) }

// TestPatchesTold: a VM that executes copies of the guest's code is told when a debugger changes that.
func TestPatchesTold(t *testing.T) {
	m, err := New(Config{Kernel: payload(t, 0x90, 0x90), Memory: 32 << 20, Engine: SoftwareEngine})
	if err != nil {
		t.Skipf("no software engine: %v", err)
	}
	defer m.Close()
	var w written
	m.mem.writer = &w
	d := m.Debugger()
	if err := d.Attach(); err != nil {
		t.Fatal(err)
	}
	at := Breakpoint{Kind: BreakSoftware, Addr: debugCode + 1}
	if err := d.SetBreakpoint(0, at); err != nil {
		t.Fatal(err)
	}
	if err := d.ClearBreakpoint(at); err != nil {
		t.Fatal(err)
	}
	if n, err := d.WriteMemory(0, debugCode, []byte{0x91, 0x92}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if want := []uint64{debugCode + 1, 1, debugCode + 1, 1, debugCode, 2}; !slices.Equal(w, want) {
		t.Errorf("told of %#x, want %#x", w, want)
	}
}
