package ring0

import "testing"

// TestOwnBreakpoints arms the guest's own debug registers, and looks where #DB comes and what
// DR6 says.
func TestOwnBreakpoints(t *testing.T) {
	const data = userStack + 0x40
	move := []byte{0x88, 0x0e, 0x88, 0x4e, 0x01, 0x8a, 0x16, 0x90, 0x90} // mov [rsi], cl; mov [rsi+1], cl; mov dl, [rsi]; nop; nop
	for _, tt := range []struct {
		name string
		code []byte
		addr uint64
		dr7  uint64
		flag uint64
		at   uint64 // of #DB, from userCode on; 0 for none
		dr6  uint64
	}{
		{"an instruction", move, userCode + 5, 1, 0, 5, 1},
		{"one that is to be resumed", move, userCode, 1, flagRF, 0, 0},
		{"not armed", move, userCode + 5, 4, 0, 0, 0},
		{"a byte that is written", move, data + 1, 1 | 1<<16, 0, 5, 1},
		{"a word that is written", move, data, 2 | 5<<16, 0, 2, 1},
		{"a byte that is read", append([]byte{0x8a, 0x16}, move...), data, 1 | 3<<16, 0, 2, 1},
		{"a read where writes are watched", []byte{0x8a, 0x16, 0x90, 0x90, 0x90, 0x90}, data, 1 | 1<<16, 0, 0, 0},
		{"what is beside", move, data + 2, 1 | 3<<16, 0, 0, 0},
		{"a string, behind its element", []byte{0xf3, 0xaa, 0x90, 0x90}, data + 2, 1 | 1<<16, 0, 0x100, 1}, // rep stosb
		{"behind MOV SS the next", []byte{0x8e, 0x16, 0x90, 0x90}, data, 1 | 3<<16, 0, 3, 1},
		{"a step", move, 0, 0, flagTF, 2, 1 << 14},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := completeCPU(t, tt.code...)
			inUser(c, false)
			if err := c.Translate(); err != nil {
				t.Log(err)
			}
			c.r[rSI], c.r[rDI], c.r[rCX] = data, data, 5
			c.store(data, 0x23, 8)
			c.SetDebugRegister(0, tt.addr)
			c.SetDebugRegister(6, dr6Fixed)
			c.SetDebugRegister(7, tt.dr7|dr7Fixed)
			c.setFlags(c.flags() | tt.flag)
			for range 5 {
				if c.Run(1); c.cpl == 0 {
					break
				}
			}
			if tt.at == 0 {
				if c.cpl == 0 {
					t.Fatalf("an exception in front of %#x, DR6 %#x", pushed(c)[0], c.DebugRegister(6))
				}
				return
			}
			at := userCode + tt.at
			if tt.at == 0x100 { // the string goes on
				if at = userCode; c.r[rCX] != 2 {
					t.Errorf("RCX %d", c.r[rCX])
				}
			}
			if c.RIP() != handlers+16*vectorDB || pushed(c)[0] != at || c.DebugRegister(6) != dr6Fixed|tt.dr6 {
				t.Errorf("at %#x, pushed %#x, DR6 %#x", c.RIP(), pushed(c)[0], c.DebugRegister(6))
			}
		})
	}
}

// TestResume returns with RF to an instruction that has a breakpoint: it is executed, once.
func TestResume(t *testing.T) {
	c, _ := completeCPU(t, 0x48, 0xcf) // iretq
	c.tables.mem.(fuzzMemory)[userCode>>12][0] = 0x90
	copy(c.tables.mem.(fuzzMemory)[userCode>>12][1:], []byte{0xeb, 0xfd}) // jmp to it
	for i, v := range []uint64{userCode, 0x2b, 2 | flagRF, userStack, 0x23} {
		c.store(c.r[rSP]+8*uint64(i), v, 8)
	}
	c.SetDebugRegister(1, userCode)
	c.SetDebugRegister(7, 4)
	if c.Run(3); c.RIP() != userCode || c.cpl != 3 {
		t.Fatalf("at %#x, level %d", c.RIP(), c.cpl)
	}
	if c.Run(1); c.RIP() != handlers+16*vectorDB || pushed(c)[0] != userCode || c.DebugRegister(6)&15 != 2 {
		t.Errorf("at %#x, DR6 %#x", c.RIP(), c.DebugRegister(6))
	}
}

// TestOwnTogether meets data behind MOV SS, and a breakpoint at the next instruction: that is one
// exception, and none comes within its handler.
func TestOwnTogether(t *testing.T) {
	const data = userStack + 0x40
	c, _ := completeCPU(t, 0x8e, 0x16, 0x90) // mov ss, [rsi]; nop
	c.tables.mem.(fuzzMemory)[handlers>>12][16*vectorDB] = 0x90
	inUser(c, false)
	c.r[rSI] = data
	c.store(data, 0x23, 8)
	c.SetDebugRegister(0, data)
	c.SetDebugRegister(1, userCode+2)
	c.SetDebugRegister(7, 5|3<<16)
	c.Run(2)
	if c.RIP() != handlers+16*vectorDB || pushed(c)[0] != userCode+2 || c.DebugRegister(6)&15 != 3 {
		t.Fatalf("at %#x, DR6 %#x", c.RIP(), c.DebugRegister(6))
	}
	if c.Run(1); c.RIP() != handlers+16*vectorDB+1 {
		t.Errorf("within the handler, at %#x", c.RIP())
	}
}
