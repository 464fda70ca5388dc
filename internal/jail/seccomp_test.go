package jail

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestFilter asks the program about every call there is, and beyond: what has no
// conditions is allowed, what has some by its arguments, and nothing else.
func TestFilter(t *testing.T) {
	for _, rules := range []Rules{{}, {Internet: true}, {Internet: true, Connect: true}} {
		byCall := map[uint32]rule{}
		for _, r := range allowed(rules.families()) {
			if _, twice := byCall[r.call]; twice {
				t.Errorf("two rules for %s: the second would say nothing", callName(int(r.call)))
			}
			byCall[r.call] = r
		}
		program, err := filter(allowed(rules.families()))
		if err != nil {
			t.Fatal(err)
		}
		var list []bpf.Instruction
		for _, i := range program {
			list = append(list, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K}.Disassemble())
		}
		vm, err := bpf.NewVM(list)
		if err != nil {
			t.Fatal(err)
		}
		askAll := func(call uint32, args map[int]uint32) uint32 {
			data := make([]byte, dataArgs+6*8)
			binary.BigEndian.PutUint32(data[dataNumber:], call) // as bpf.VM loads, unlike the kernel here
			binary.BigEndian.PutUint32(data[dataArch:], unix.AUDIT_ARCH_X86_64)
			for arg, value := range args {
				binary.BigEndian.PutUint32(data[dataArgs+8*arg:], value)
			}
			answer, err := vm.Run(data)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(answer)
		}
		ask := func(call uint32, arg int, value uint32) uint32 { return askAll(call, map[int]uint32{arg: value}) }
		for call := range uint32(1000) {
			r, known := byCall[call]
			want := uint32(unix.SECCOMP_RET_USER_NOTIF)
			switch {
			case call == unix.SYS_CLONE3:
				want = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
			case known && len(r.conditions) == 0:
				want = unix.SECCOMP_RET_ALLOW
			case known && len(r.conditions) == 1:
				for _, c := range r.conditions {
					for _, v := range slices.Concat(c.values, c.exact) {
						if got := ask(call, c.arg, v); got != unix.SECCOMP_RET_ALLOW {
							t.Errorf("%s with %#x: %#x", callName(int(call)), v, got)
						}
					}
					for v := range uint32(1 << 16) {
						listed := slices.Contains(c.values, v&c.mask) || slices.Contains(c.exact, v)
						if got := ask(call, c.arg, v); (got == unix.SECCOMP_RET_ALLOW) != listed {
							t.Fatalf("%s with %#x: %#x", callName(int(call)), v, got)
						}
					}
				}
				continue
			case known && len(r.conditions) == 2:
				a, b := r.conditions[0], r.conditions[1]
				for v := range uint32(300) {
					for w := range uint32(300) {
						listed := slices.Contains(a.values, v&a.mask) && slices.Contains(b.values, w&b.mask)
						if got := askAll(call, map[int]uint32{a.arg: v, b.arg: w}); (got == unix.SECCOMP_RET_ALLOW) != listed {
							t.Fatalf("%s with %#x and %#x: %#x", callName(int(call)), v, w, got)
						}
					}
				}
				continue
			case known:
				t.Fatalf("%s has %d conditions", callName(int(call)), len(r.conditions))
			}
			if got := ask(call, 0, 0); got != want {
				t.Errorf("%s: %#x, want %#x", callName(int(call)), got, want)
			}
		}
		if got := ask(x32Bit|unix.SYS_READ, 0, 0); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("read of the x32 ABI: %#x", got)
		}
	}
}
