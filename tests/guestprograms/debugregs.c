// A program whose hardware breakpoints and watchpoints another one sets (ptrace), as gdb does.
// A line a stop: which of the registers, and where.
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

volatile uint32_t written, read_from = 5, string[8];
extern char stored[], loaded[], called[];

// watched does twice what is watched: a store, a load, a NOP and a string.
__attribute__((noinline)) static void watched(void)
{
	__asm__ volatile("mov $2, %%edx\n"
	                 "xor %%ecx, %%ecx\n"
	                 "1: movl $7, written(%%rip)\n"
	                 "stored: movl read_from(%%rip), %%eax\n"
	                 "loaded: nop\n"
	                 "called: nop\n"
	                 "lea string(%%rip), %%rdi\n"
	                 "mov $32, %%ecx\n"
	                 "rep stosb\n"
	                 "dec %%edx\n"
	                 "jnz 1b" ::: "rax", "rcx", "rdx", "rdi", "memory", "cc");
}

static long set(pid_t pid, int n, uint64_t v)
{
	return ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg) + n * sizeof(long), v);
}

int main(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		watched();
		_exit(3);
	}
	int status;
	waitpid(pid, &status, 0);
	set(pid, 0, (uint64_t)&written);
	set(pid, 1, (uint64_t)&read_from);
	set(pid, 2, (uint64_t)called);
	set(pid, 3, (uint64_t)&string[3]);
	// Enabled; written 4 bytes, accessed 4 bytes, executed, written 2 bytes.
	if (set(pid, 7, 0x55 | 0xd0000 | 0xf00000 | 0x50000000))
		return 2;
	for (;;) {
		struct user_regs_struct r;
		ptrace(PTRACE_CONT, pid, 0, 0);
		waitpid(pid, &status, 0);
		if (!WIFSTOPPED(status))
			break;
		long dr6 = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg) + 6 * sizeof(long), 0);
		ptrace(PTRACE_GETREGS, pid, 0, &r);
		printf("signal %d, DR6 %lx, %s, %d left\n", WSTOPSIG(status), dr6 & 0xf, r.rip == (uint64_t)stored ? "behind the store" :
			r.rip == (uint64_t)loaded ? "behind the load" : r.rip == (uint64_t)called ? "at the breakpoint" : "in the string", (int)r.rcx);
		set(pid, 6, 0);
	}
	printf("status %d\n", WEXITSTATUS(status));
	return 0;
}
