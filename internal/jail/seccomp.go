package jail

import (
	"fmt"
	"os"
	"runtime"
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

// refuse hands the call to the listener.
var refuse = bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}

// clone3 has its flags where no filter can look. Libraries take this answer for an older
// kernel's, and call clone.
var noClone3 = []bpf.Instruction{
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
	bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
}

// filter assembles the program that allows what the rules say, and hands all else to
// the listener.
func filter(rules []rule) ([]unix.SockFilter, error) {
	var p []bpf.Instruction
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	number := bpf.LoadAbsolute{Off: dataNumber, Size: 4}
	p = append(p,
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}, // what a number means is not known there
		number,
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	for _, r := range rules {
		var body []bpf.Instruction
		for _, c := range r.conditions {
			body = append(body, c.test()...)
		}
		body = append(body, allow)
		if len(body) > 255 {
			return nil, fmt.Errorf("the rule of system call %d is too long", r.call)
		}
		p = append(append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.call, SkipTrue: uint8(len(body))}), body...)
		if len(r.conditions) > 0 {
			p = append(p, number) // the conditions have loaded arguments
		}
	}
	raw, err := bpf.Assemble(append(append(p, noClone3...), refuse))
	if err != nil {
		return nil, err
	}
	var out []unix.SockFilter
	for _, i := range raw {
		out = append(out, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	return out, nil
}

// test is code that goes on behind itself if the condition holds, and else refuses.
func (c condition) test() []bpf.Instruction {
	load := bpf.LoadAbsolute{Off: uint32(dataArgs + 8*c.arg), Size: 4}
	p := []bpf.Instruction{load, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: c.mask}}
	left := len(c.values) + 1 + len(c.exact) // behind the first comparison, with what refuses
	for _, v := range c.values {
		left--
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(left + 1)})
	}
	p = append(p, load)
	for _, v := range c.exact {
		left--
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(left)})
	}
	return append(p, refuse)
}

// filterCalls installs the filter in all threads, and a goroutine that tells of calls
// that were refused.
func filterCalls(program []unix.SockFilter, violation func(string)) error {
	f, err := install(program)
	if err != nil {
		return err
	}
	go listen(f, violation)
	return nil
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
