package jail

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What a VM does while it runs, by what does it.
const (
	// Go's runtime and its standard library.
	runtimeCalls = `futex nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday sched_yield sched_getaffinity
		getpid gettid getppid getuid geteuid getgid getegid getrandom uname sysinfo getrusage getrlimit restart_syscall
		rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sigaltstack rseq set_robust_list set_tid_address membarrier
		setitimer timer_create timer_settime timer_delete arch_prctl
		munmap madvise mremap brk mincore mlock munlock msync exit exit_group
		epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll eventfd2 pipe2 dup dup2 dup3 fcntl close close_range`
	// Disks, shared directories, snapshots and logs. Landlock says which files.
	fileCalls = `read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek splice sendfile copy_file_range
		open openat openat2 access faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs getcwd readlink readlinkat getdents64
		fsync fdatasync sync_file_range fallocate truncate ftruncate flock memfd_create umask
		mkdir mkdirat mknodat symlinkat linkat unlink rmdir unlinkat rename renameat renameat2
		chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utimensat
		getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr`
	// The control socket, the gateway and switches. socket itself has a rule.
	socketCalls = `bind connect listen accept4 shutdown getsockname getpeername setsockopt getsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg`
	// Taking more away.
	jailCalls = `landlock_create_ruleset landlock_add_rule landlock_restrict_self`
)

// Types of ioctls, which are bits 8 to 15 of the request (ioctl-number.rst).
const (
	typeMask     = 0xff00
	typeKVM      = 0xae << 8
	typeTerminal = 'T' << 8 // and tun's
	typeFile     = 'f' << 8 // FS_IOC_*
	typeBlock    = 0x12 << 8
	typeClone    = 0x94 << 8 // FICLONE
	typeSocket   = 0x89 << 8
	typeSeccomp  = '!' << 8
)

// Requests that are among them and that nothing here makes: keys for the terminal of
// whoever has started the VM, and an answer to the listener.
const notifySend = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND

const (
	protExec = unix.PROT_EXEC
	// prSetVMA is PR_SET_VMA, by which Go's runtime names its memory.
	prSetVMA = 0x53564d41
	all      = 0xffffffff
)

// allowed are the rules of a VM that runs.
func allowed(internet bool) []rule {
	families := []uint32{unix.AF_UNIX}
	if internet {
		families = append(families, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK) // netlink: the host's addresses
	}
	self := []uint32{uint32(os.Getpid())}
	rules := []rule{
		// The most frequent first: a filter is read from its start.
		{unix.SYS_IOCTL, []condition{
			{arg: 1, mask: typeMask, values: []uint32{typeKVM, typeTerminal, typeFile, typeBlock, typeClone, typeSocket, typeSeccomp}},
			{arg: 1, mask: all, not: true, values: []uint32{unix.TIOCSTI, unix.TIOCLINUX, notifySend}},
		}},
	}
	numbers := callNumbers()
	for _, list := range []string{runtimeCalls, fileCalls, socketCalls, jailCalls} {
		for _, name := range strings.Fields(list) {
			rules = append(rules, rule{call: numbers[name]})
		}
	}
	return append(rules,
		rule{unix.SYS_MMAP, []condition{{arg: 2, mask: protExec, values: []uint32{0}}}},
		rule{unix.SYS_MPROTECT, []condition{{arg: 2, mask: protExec, values: []uint32{0}}}},
		rule{unix.SYS_CLONE, []condition{{arg: 0, mask: unix.CLONE_THREAD, values: []uint32{unix.CLONE_THREAD}}}},
		rule{unix.SYS_SOCKET, []condition{{arg: 0, mask: all, values: families}}},
		rule{unix.SYS_SOCKETPAIR, []condition{{arg: 0, mask: all, values: []uint32{unix.AF_UNIX}}}},
		rule{unix.SYS_KILL, []condition{{arg: 0, mask: all, values: self}}},
		rule{unix.SYS_TGKILL, []condition{{arg: 0, mask: all, values: self}}},
		rule{unix.SYS_PRCTL, []condition{{arg: 0, mask: all, values: []uint32{prSetVMA, unix.PR_SET_NAME, unix.PR_SET_NO_NEW_PRIVS}}}},
		rule{unix.SYS_PRLIMIT64, []condition{{arg: 0, mask: all, values: []uint32{0, self[0]}}}},
	)
}
