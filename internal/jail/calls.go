package jail

import (
	"os"

	"golang.org/x/sys/unix"
)

// What a VM does while it runs, by what does it.

// runtimeCalls are those of Go's runtime and standard library.
var runtimeCalls = []uint32{
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID,
	unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETRANDOM, unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETRUSAGE, unix.SYS_GETRLIMIT,
	unix.SYS_RESTART_SYSCALL, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGSUSPEND,
	unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_SIGALTSTACK, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_MEMBARRIER,
	unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_ARCH_PRCTL, unix.SYS_MUNMAP,
	unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_BRK, unix.SYS_MINCORE, unix.SYS_MLOCK, unix.SYS_MUNLOCK, unix.SYS_MSYNC, unix.SYS_EXIT,
	unix.SYS_EXIT_GROUP, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2,
	unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_DUP, unix.SYS_DUP2, unix.SYS_DUP3,
	unix.SYS_CLOSE, unix.SYS_CLOSE_RANGE,
}

// fileCalls are of disks, shared directories, snapshots and logs. Landlock says which files.
var fileCalls = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV,
	unix.SYS_PREADV2, unix.SYS_PWRITEV2, unix.SYS_LSEEK, unix.SYS_SPLICE, unix.SYS_SENDFILE, unix.SYS_COPY_FILE_RANGE, unix.SYS_OPEN,
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_ACCESS, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_STAT, unix.SYS_FSTAT, unix.SYS_LSTAT,
	unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_GETCWD, unix.SYS_READLINK, unix.SYS_READLINKAT,
	unix.SYS_GETDENTS64, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_FALLOCATE, unix.SYS_TRUNCATE,
	unix.SYS_FTRUNCATE, unix.SYS_FLOCK, unix.SYS_MEMFD_CREATE, unix.SYS_UMASK, unix.SYS_MKDIR, unix.SYS_MKDIRAT, unix.SYS_MKNODAT,
	unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_UNLINK, unix.SYS_RMDIR, unix.SYS_UNLINKAT, unix.SYS_RENAME, unix.SYS_RENAMEAT,
	unix.SYS_RENAMEAT2, unix.SYS_CHMOD, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_CHOWN, unix.SYS_FCHOWN,
	unix.SYS_LCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT, unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_FGETXATTR, unix.SYS_SETXATTR,
	unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, unix.SYS_FLISTXATTR, unix.SYS_REMOVEXATTR,
	unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
}

// socketCalls are of the control socket, the gateway and switches. socket itself has a rule.
var socketCalls = []uint32{
	unix.SYS_BIND, unix.SYS_CONNECT, unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
	unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDMMSG,
	unix.SYS_RECVMMSG,
}

// jailCalls take more away.
var jailCalls = []uint32{
	unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE, unix.SYS_LANDLOCK_RESTRICT_SELF,
}

// Ioctls: KVM's by their type, which is bits 8 to 15 of the request (ioctl-number.rst), and
// others by themselves.
const (
	typeMask = 0xff00
	typeKVM  = 0xae << 8
	kvmRun   = typeKVM | 0x80 // KVM_RUN, which is asked for with each exit
)

// ioctls are the most frequent of KVM's, and those of others: of terminals to look and to set their modes, not to type into
// them; of tun; and of the filter's listener, not to answer it.
var ioctls = []uint32{kvmRun, unix.TCGETS, unix.TCSETS, unix.TCSETSW, unix.TCSETSF, unix.TIOCGWINSZ, unix.TIOCGPGRP, unix.TIOCINQ, unix.TIOCOUTQ,
	unix.TUNSETOFFLOAD, receive}

// fcntls are the commands of fcntl. By those that are left out a process has signals sent to
// others (F_SETOWN and F_SETSIG), and others wait for it (F_SETLEASE).
var fcntls = []uint32{unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_OFD_GETLK,
	unix.F_OFD_SETLK, unix.F_OFD_SETLKW, unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ, unix.F_ADD_SEALS, unix.F_GET_SEALS}

// protocols are those of sockets of IPv4 and IPv6. Of netlink only 0 is the number of one that
// tells a process without rights anything: NETLINK_ROUTE.
var protocols = []uint32{0, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_MPTCP}

const (
	protExec = unix.PROT_EXEC
	// ofThread are the flags of clone that say whether it makes a thread, and in namespaces of its own.
	ofThread = unix.CLONE_THREAD | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	// prSetVMA is PR_SET_VMA, by which Go's runtime names its memory.
	prSetVMA = 0x53564d41
	all      = 0xffffffff
)

// allowed are the rules of a VM that runs, whose process may make sockets of some families.
func allowed(families []uint32) []rule {
	self := []uint32{uint32(os.Getpid())}
	rules := []rule{
		// The most frequent first: it is found without a search.
		{unix.SYS_IOCTL, []condition{{arg: 1, mask: typeMask, values: []uint32{typeKVM}, exact: ioctls}}},
	}
	for _, list := range [][]uint32{runtimeCalls, fileCalls, socketCalls, jailCalls} {
		for _, call := range list {
			rules = append(rules, rule{call: call})
		}
	}
	return append(rules,
		rule{unix.SYS_MMAP, []condition{{arg: 2, mask: protExec, values: []uint32{0}}}},
		rule{unix.SYS_MPROTECT, []condition{{arg: 2, mask: protExec, values: []uint32{0}}}},
		rule{unix.SYS_CLONE, []condition{{arg: 0, mask: ofThread, values: []uint32{unix.CLONE_THREAD}}}},
		rule{unix.SYS_FCNTL, []condition{{arg: 1, mask: all, values: fcntls}}},
		rule{unix.SYS_SOCKET, []condition{{arg: 0, mask: all, values: families}, {arg: 2, mask: all, values: protocols}}},
		rule{unix.SYS_KILL, []condition{{arg: 0, mask: all, values: self}}},
		rule{unix.SYS_TGKILL, []condition{{arg: 0, mask: all, values: self}}},
		rule{unix.SYS_PRCTL, []condition{{arg: 0, mask: all, values: []uint32{prSetVMA, unix.PR_SET_NAME, unix.PR_SET_NO_NEW_PRIVS}}}},
		rule{unix.SYS_PRLIMIT64, []condition{{arg: 0, mask: all, values: []uint32{0, self[0]}}}},
	)
}
