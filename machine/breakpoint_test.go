package machine

import (
	"fmt"
	"slices"
	"testing"

	"vmm/kvm"
)

func TestDebugRegisters(t *testing.T) {
	write := func(addr, n uint64) Breakpoint { return Breakpoint{BreakWrite, addr, n} }
	for _, c := range []struct {
		set  []Breakpoint
		want string // address and, in base 16, LEN and R/W of each; empty for an error
	}{
		{[]Breakpoint{{Kind: BreakHardware, Addr: 0x1001}}, "[0x1001 0x0]"},
		{[]Breakpoint{write(0x1000, 1), write(0x1002, 2), write(0x1004, 4), write(0x1008, 8)},
			"[0x1000 0x1 0x1002 0x5 0x1004 0xd 0x1008 0x9]"},
		{[]Breakpoint{{BreakAccess, 0x1000, 8}}, "[0x1000 0xb]"},
		{[]Breakpoint{write(0x1001, 8)}, "[0x1001 0x1 0x1002 0x5 0x1004 0xd 0x1008 0x1]"},
		{[]Breakpoint{write(0x1004, 12)}, "[0x1004 0xd 0x1008 0x9]"},
		{[]Breakpoint{write(0x1000, 32)}, "[0x1000 0x9 0x1008 0x9 0x1010 0x9 0x1018 0x9]"},
		{[]Breakpoint{write(^uint64(7), 8)}, "[0xfffffffffffffff8 0x9]"},
		{[]Breakpoint{write(^uint64(3), 8)}, "[0xfffffffffffffffc 0xd 0x0 0xd]"}, // around the end
		{[]Breakpoint{write(0x1000, 33)}, ""},
		{[]Breakpoint{write(0x1000, ^uint64(0))}, ""},
		{[]Breakpoint{write(0x1004, 32)}, ""}, // five
		{[]Breakpoint{write(0x1000, 0)}, ""},
		{[]Breakpoint{write(0x1000, 24), {Kind: BreakHardware}, {Kind: BreakHardware, Addr: 1}}, ""},
	} {
		r, err := debugRegisters(c.set)
		var got []string
		for _, r := range r {
			got = append(got, fmt.Sprintf("%#x", r.addr), fmt.Sprintf("%#x", r.kind))
		}
		if (err != nil) != (c.want == "") || err == nil && fmt.Sprint(got) != c.want {
			t.Errorf("%+v: %v, %v; want %q", c.set, got, err, c.want)
		}
	}
}

// TestDebugRegisterCover wants every byte of what is watched in one register, and no
// other byte.
func TestDebugRegisterCover(t *testing.T) {
	lengths := map[uint64]uint64{0: 1, 1: 2, 3: 4, 2: 8}
	for addr := uint64(0x1000); addr < 0x1008; addr++ {
		for n := uint64(1); n <= 32; n++ {
			r, err := debugRegisters([]Breakpoint{{BreakWrite, addr, n}})
			if err != nil {
				continue
			}
			next := addr
			for _, r := range r {
				size := lengths[r.kind>>2]
				if r.addr != next || r.addr%size != 0 {
					t.Errorf("%d bytes at %#x: %+v", n, addr, r)
				}
				next += size
			}
			if next != addr+n {
				t.Errorf("%d bytes at %#x: up to %#x", n, addr, next)
			}
		}
	}
}

func TestGuestDebug(t *testing.T) {
	r, err := debugRegisters([]Breakpoint{{Kind: BreakHardware, Addr: 0x5000}, {BreakAccess, 0x6000, 8}, {BreakWrite, 0x7000, 4}})
	if err != nil {
		t.Fatal(err)
	}
	const on, step, sw, hw = kvm.GuestDebugEnable, kvm.GuestDebugSingleStep, kvm.GuestDebugUseSWBP, kvm.GuestDebugUseHWBP
	for _, c := range []struct {
		a       armed
		step    bool
		control uint32
		dr7     uint64
	}{
		{armed{}, false, 0, 0},
		{armed{}, true, on | step, 0},
		{armed{at: map[uint64]bool{1: true}}, false, on | sw, 0},
		{armed{at: map[uint64]bool{1: true}, registers: r}, true, on | step | sw | hw, 0xdb0<<16 | 1<<10 | 2<<4 | 2<<2 | 2},
	} {
		g := c.a.guestDebug(c.step)
		if g.Control != c.control || g.DebugReg[7] != c.dr7 {
			t.Errorf("%+v: control %#x, DR7 %#x; want %#x and %#x", c.a, g.Control, g.DebugReg[7], c.control, c.dr7)
		}
		for i, r := range c.a.registers {
			if g.DebugReg[i] != r.addr {
				t.Errorf("DR%d is %#x", i, g.DebugReg[i])
			}
		}
	}
}

func TestJudgeDebugExit(t *testing.T) {
	const (
		always = 0xffff0ff0 // bits of DR6
		step   = 1 << 14
		db, bp = kvm.GuestDebugInjectDB, kvm.GuestDebugInjectBP
	)
	exec, write, access := Breakpoint{Kind: BreakHardware, Addr: 0x5000}, Breakpoint{BreakWrite, 0x6000, 12}, Breakpoint{BreakAccess, 0x7000, 1}
	software := Breakpoint{Kind: BreakSoftware, Addr: 0x4000}
	inHW, err := debugRegisters([]Breakpoint{exec, write, access}) // of one, two and one registers
	if err != nil {
		t.Fatal(err)
	}
	soft := armed{at: map[uint64]bool{0x4000: true}}
	all := armed{at: soft.at, registers: inHW}
	one := armed{registers: inHW[:1]}
	stopped := func(b Breakpoint, addr uint64) ruling { return hitAt(b, addr) }
	stepped := ruling{stop: true, event: DebugEvent{Reason: StopStep}}
	also := func(r ruling, causes uint64) ruling {
		r.inject, r.causes = db, causes
		return r
	}
	for _, c := range []struct {
		name      string
		a         armed
		exception uint32
		pc, dr6   uint64
		stepping  bool
		guestDR7  uint64
		want      ruling
	}{
		{"our int3", soft, 3, 0x4000, 0, false, 0, stopped(software, 0x4000)},
		{"our int3 in a step", soft, 3, 0x4000, 0, true, 0, stopped(software, 0x4000)},
		{"another int3", soft, 3, 0x4001, 0, false, 0, ruling{inject: bp}},
		{"another int3 in a step", soft, 3, 0x4001, 0, true, 0, ruling{inject: bp}},
		{"an int3 without breakpoints", armed{}, 3, 0x4000, 0, false, 0, ruling{inject: bp}},
		{"an int3 where a register has a breakpoint", all, 3, 0x5000, 0, false, 0, ruling{inject: bp}},

		{"a step", armed{}, 1, 0x10, always | step, true, 0, stepped},
		{"a step without a word", armed{}, 1, 0x10, always, true, 0, stepped},
		{"a step on an old host", all, 1, 0x10, 0, true, 0, stepped},
		{"the guest's step", all, 1, 0x10, always | step, false, 0, also(ruling{}, step)},
		{"the guest's int1", all, 1, 0x10, always, false, 0, also(ruling{}, 0)},
		{"the guest's int1 on a host with nothing set", soft, 1, 0x10, 0, false, 0, also(ruling{}, 0)},

		{"our instruction", all, 1, 0x5000, always | 1, false, 0, stopped(exec, 0x5000)},
		{"our instruction in a step", all, 1, 0x5000, always | step | 1, true, 0, stopped(exec, 0x5000)},
		{"our data", all, 1, 0x10, always | 2, false, 0, stopped(write, 0x6000)},
		{"its second part", all, 1, 0x10, always | 4, false, 0, stopped(write, 0x6008)},
		{"our data, read", all, 1, 0x10, always | 8, false, 0, stopped(access, 0x7000)},
		{"our data in a step", all, 1, 0x10, always | step | 8, true, 0, stopped(access, 0x7000)},
		{"data, and then an instruction", all, 1, 0x5000, always | 9, false, 0, stopped(access, 0x7000)},
		{"two data", all, 1, 0x10, always | 12, false, 0, stopped(write, 0x6008)},
		{"our data in the guest's step", all, 1, 0x10, always | step | 2, false, 0, also(stopped(write, 0x6000), step)},
		{"any of ours on an old host", all, 1, 0x5000, 0, false, 0, stopped(exec, 0x5000)},

		{"the guest's register while ours are loaded", one, 1, 0x5000, always | 3, false, 0xff, stopped(exec, 0x5000)},
		{"the guest's instruction in our step", soft, 1, 0x10, always | 2, true, 3 << 2, also(ruling{}, 2)},
		{"the guest's data in our step", soft, 1, 0x10, always | step | 2, true, 2 << 2, also(stepped, 2)},
		{"a register that is not enabled", soft, 1, 0x10, always | step | 2, true, 3, stepped},
		{"the guest's access of a debug register", soft, 1, 0x10, always | 1<<13, true, 0, also(ruling{}, 1<<13)},
	} {
		e := kvm.DebugExit{Exception: c.exception, PC: c.pc, DR6: c.dr6}
		if got := c.a.judge(&e, c.stepping, c.guestDR7); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestLateEvents has vCPUs stop beside one another.
func TestLateEvents(t *testing.T) {
	d := newDebugger(&Machine{})
	d.m.gate.init()
	if err := d.Attach(); err != nil {
		t.Fatal(err)
	}
	soft, write := Breakpoint{Kind: BreakSoftware, Addr: 1}, Breakpoint{BreakWrite, 0x1000, 8}
	if err := d.SetBreakpoint(0, write); err != nil {
		t.Fatal(err)
	}
	at := func(cpu int, b Breakpoint) { d.hit(&vcpu{id: cpu}, hitAt(b, b.Addr).event) }
	resume := func(step int) {
		t.Helper()
		if err := d.Resume(step); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(cpu int) {
		t.Helper()
		if e := d.Wait(); e.CPU != cpu || e.Reason != StopBreakpoint {
			t.Errorf("%+v, want CPU %d", e, cpu)
		}
	}
	for cpu, b := range []Breakpoint{soft, write, soft, write} {
		at(cpu, b)
	}
	wait(0)
	if resume(2); len(d.events) != 0 || d.m.gate.held {
		t.Error("a step does not go")
	}
	at(2, soft)
	wait(2)
	resume(-1) // the data that CPU 1 has written comes first
	if !d.m.gate.held {
		t.Error("the machine runs")
	}
	wait(1)
	resume(-1)
	wait(3)
	if resume(-1); d.m.gate.held || len(d.events) != 0 {
		t.Error("the machine stands")
	}

	at(0, soft)
	at(1, write)
	wait(0)
	if err := d.ClearBreakpoint(write); err != nil || slices.Contains(d.inHW, write) {
		t.Error(d.inHW, err)
	}
	if resume(-1); d.m.gate.held || len(d.events) != 0 {
		t.Error("a breakpoint that is gone was hit")
	}
}
