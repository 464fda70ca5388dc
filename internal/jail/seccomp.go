package jail

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sort"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What seccomp(2) hands to a filter, and a filter returns (linux/seccomp.h).
const (
	dataNumber = 0  // offsetof(struct seccomp_data, nr)
	dataArch   = 4  // arch
	dataArgs   = 16 // args, 8 bytes each

	x32Bit = 0x40000000 // in the number of a call by the x32 ABI
)

// condition is that an argument, of which only the bits of mask count, is one of some values,
// or all of it is one of exact. Only the lower half of an argument is looked at, which is all
// that the kernel takes of those that are in the rules.
type condition struct {
	arg           int
	mask          uint32
	values, exact []uint32
}

// rule allows a system call if all its conditions hold.
type rule struct {
	call       uint32
	conditions []condition
}

// program is a filter from its last instruction to its first: jumps lead forward only, so what they lead to is
// there already. A place in it is how many instructions there are from there to the end.
type program []bpf.Instruction

// put puts an instruction before all others, and returns its place.
func (p *program) put(i bpf.Instruction) int {
	*p = append(*p, i)
	return len(*p)
}

// jump goes on at one of two places. filter finds those that are out of reach.
func (p *program) jump(cond bpf.JumpTest, value uint32, yes, no int) int {
	reach := func(to int) uint8 { return uint8(min(len(*p)-to, unreachable)) }
	return p.put(bpf.JumpIf{Cond: cond, Val: value, SkipTrue: reach(yes), SkipFalse: reach(no)})
}

// unreachable is no jump's, for it is too far.
const unreachable = 255

// test goes on at yes if the condition holds, else at no.
func (p *program) test(c *condition, yes, no int) int {
	if len(c.values)+len(c.exact) == 0 {
		return no
	}
	for _, v := range slices.Backward(c.values) {
		no = p.jump(bpf.JumpEqual, v, yes, no)
	}
	if c.mask != all && len(c.values) > 0 {
		no = p.put(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: c.mask})
	}
	for _, v := range slices.Backward(c.exact) {
		no = p.jump(bpf.JumpEqual, v, yes, no)
	}
	return p.put(bpf.LoadAbsolute{Off: uint32(dataArgs + 8*c.arg), Size: 4})
}

// span is from a system call on, up to the next span, and where to go on for it.
type span struct {
	from uint32
	to   int
}

// search goes on where the span leads that the system call's number is in: by halves, for the kernel asks a filter
// about every call when it is installed.
func (p *program) search(spans []span) int {
	if len(spans) == 1 {
		return spans[0].to
	}
	half := len(spans) / 2
	above := p.search(spans[half:])
	below := p.search(spans[:half])
	return p.jump(bpf.JumpGreaterOrEqual, spans[half].from, above, below)
}

// filter assembles the program that allows what the rules say, and hands all else to
// the listener. The first rule is the most frequent one.
func filter(rules []rule) ([]unix.SockFilter, error) {
	var p program
	kill := p.put(bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	refuse := p.put(bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF})
	// clone3 has its flags where no filter can look. Libraries take this answer for an older
	// kernel's, and call clone.
	unknown := p.put(bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	allow := p.put(bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	calls := make([]span, 0, len(rules)+2)
	calls = append(calls, span{x32Bit, kill}, span{unix.SYS_CLONE3, unknown}) // what a number means is not known there
	to := allow
	for i := range slices.Backward(rules) {
		to = allow
		for _, c := range slices.Backward(rules[i].conditions) {
			to = p.test(&c, to, refuse)
		}
		calls = append(calls, span{rules[i].call, to})
	}
	sort.Slice(calls, func(i, j int) bool { return calls[i].from < calls[j].from })
	found := p.search(spans(calls, refuse))
	p.jump(bpf.JumpEqual, rules[0].call, to, found)
	known := p.put(bpf.LoadAbsolute{Off: dataNumber, Size: 4})
	p.jump(bpf.JumpEqual, unix.AUDIT_ARCH_X86_64, known, kill)
	p.put(bpf.LoadAbsolute{Off: dataArch, Size: 4})
	slices.Reverse(p)
	return assemble(p)
}

// spans are those of system calls in their order, of which only the last goes on above its own number, and of what is between
// them. None leads where the one before it does.
func spans(calls []span, between int) []span {
	out := []span{{0, between}}
	for i, c := range calls {
		if out[len(out)-1].to != c.to {
			if out[len(out)-1].from == c.from {
				out = out[:len(out)-1]
			}
			out = append(out, c)
		}
		if i+1 < len(calls) && calls[i+1].from > c.from+1 {
			out = append(out, span{c.from + 1, between})
		}
	}
	return out
}

// assemble makes of a program what the kernel takes.
func assemble(p program) ([]unix.SockFilter, error) {
	var out []unix.SockFilter
	for _, i := range p {
		raw, err := i.Assemble()
		if err != nil {
			return nil, err
		}
		if jump, ok := i.(bpf.JumpIf); ok && max(jump.SkipTrue, jump.SkipFalse) == unreachable {
			return nil, errors.New("a filter that is too long to jump in")
		}
		out = append(out, unix.SockFilter{Code: raw.Op, Jt: raw.Jt, Jf: raw.Jf, K: raw.K})
	}
	return out, nil
}

// filterCalls installs the filter in all threads. listen is for what it returns.
func filterCalls(program []unix.SockFilter) (*os.File, error) {
	// A thread that stands still in a refused call can hold its place of Go's scheduler, which knows of no
	// call that was not made by package syscall. On a host with one CPU the listener would have none.
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
	f, err := install(program)
	if err != nil {
		return nil, fmt.Errorf("restricting system calls: %w", err)
	}
	return f, nil
}

// install returns the filter's listener.
func install(program []unix.SockFilter) (*os.File, error) {
	runtime.LockOSThread() // no_new_privs is this thread's, until the filter takes it to all
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return nil, errno
	}
	unix.CloseOnExec(int(fd))
	if err := unix.SetNonblock(int(fd), true); err != nil { // the runtime waits for it, no thread
		return nil, err
	}
	return os.NewFile(fd, "seccomp"), nil
}

// canFilter reports whether the kernel has what install asks for: it looks for the
// action before it looks at the size of what is there (seccomp(2)).
func canFilter() bool {
	action := uint32(unix.SECCOMP_RET_USER_NOTIF)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0
}

// notification is struct seccomp_notif, and receive is SECCOMP_IOCTL_NOTIF_RECV.
type notification struct {
	id          uint64
	pid, flags  uint32
	number      int32
	arch        uint32
	instruction uint64
	args        [6]uint64
}

const receive = 0xc0502100

// listen waits for a call that was refused. The filter refuses SECCOMP_IOCTL_NOTIF_SEND
// too: nobody can let such a call go on. (One that Go's runtime makes with the world
// stopped stops it for good: what the runtime calls has to be in the rules.)
func listen(f *os.File, violation func(string)) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	var n notification
	raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if got, err := unix.Poll(ready, 0); err != nil || got == 0 {
			return false
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, receive, uintptr(unsafe.Pointer(&n)))
		return errno == 0
	})
	violation(callName(int(n.number)))
	runtime.KeepAlive(f)
}
