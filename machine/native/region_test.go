package native

import (
	"runtime"
	"testing"
	"time"
)

// TestRegion has code run to its end, trap, and run for as long as the runtime lets it.
func TestRegion(t *testing.T) {
	r, err := NewRegion()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const leave, loop, undefined, routine, caller = 0, 64, 128, 192, 256
	copy(r.Code[leave:], []byte{0xff, 0x64, 0x24, 32})                                                   // jmp [rsp+32]
	copy(r.Code[loop:], []byte{0x83, 0x3c, 0x24, 0, 0x74, 0xfa})                                         // cmp dword [rsp], 0; je loop
	copy(r.Code[loop+6:], []byte{0xff, 0x64, 0x24, 32})                                                  // jmp [rsp+32]
	copy(r.Code[undefined:], []byte{0x90, 0x0f, 0x0b, 0xeb, 254})                                        // nop; ud2
	copy(r.Code[routine:], []byte{0x83, 0x7c, 0x24, 8, 0, 0x74, 0xf9, 0xc3})                             // cmp dword [rsp+8], 0; je routine; ret
	copy(r.Code[caller:], []byte{0xe8, 256 + routine - caller - 5, 255, 255, 255, 0xff, 0x64, 0x24, 32}) // call routine; jmp [rsp+32]
	f := &new(struct {
		returnAddress uint64
		frame         Frame
	}).frame
	f.TrapExit = r.Base + leave
	r.Enter(f, r.Base+leave)
	if f.Trap != 0 {
		t.Errorf("trap %d", f.Trap-1)
	}
	r.Enter(f, r.Base+undefined)
	if f.Trap != 7 || f.TrapAt != r.Base+undefined+1 {
		t.Errorf("trap %d at %#x", int(f.Trap)-1, f.TrapAt)
	}
	for name, at := range map[string]uint64{"loop": loop, "routine": caller} {
		f.Attention.Store(0)
		done := make(chan bool)
		go func() {
			r.Enter(f, r.Base+at)
			close(done)
		}()
		time.Sleep(time.Millisecond)
		runtime.GC() // which stops all goroutines
		<-done
		if f.Attention.Load() != AttendRuntime {
			t.Errorf("%s: attention %#x", name, f.Attention.Load())
		}
	}
}
