// Code that changes while it is executed, in the ways that a JIT, a debugger and an operating system have.
// A line a way, which says "ok" or "WRONG".
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, RWX = PROT_READ | PROT_WRITE | PROT_EXEC };

static void say(const char *name, int ok)
{
	printf("%s %s\n", name, ok ? "ok" : "WRONG");
	fflush(stdout);
}

static uint8_t *pages(int n, int prot)
{
	return mmap(0, n * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

// write_adder makes a function that returns its argument plus v: mov eax, v; add eax, edi; ret.
static void write_adder(uint8_t *at, int v)
{
	uint8_t code[8] = {0xb8, 0, 0, 0, 0, 0x01, 0xf8, 0xc3};
	memcpy(code + 1, &v, 4);
	memcpy(at, code, sizeof code);
}

static int call(void *code, int x) { return ((int (*)(int))code)(x); }

static void rewritten(void)
{
	uint8_t *p = pages(1, RWX);
	int ok = 1;
	for (int i = 0; i < 20000; i++) {
		write_adder(p, i);
		ok &= call(p, 3) == i + 3;
	}
	say("rewritten", ok);
}

static void behind_a_jump(void)
{
	uint8_t *p = pages(1, RWX);
	int ok = 1;
	for (int i = 0; i < 2000; i++) { // mov byte [rip+3], i; jmp to the next; mov eax, 0; ret
		uint8_t code[] = {0xc6, 0x05, 3, 0, 0, 0, i & 0x7f, 0xeb, 0, 0xb8, 0, 0, 0, 0, 0xc3};
		memcpy(p, code, sizeof code);
		ok &= call(p, 0) == (i & 0x7f);
	}
	say("behind a jump of its own", ok);
}

static void across_pages(void)
{
	uint8_t *p = pages(2, RWX);
	int ok = 1;
	for (int off = PAGE - 7; off < PAGE; off++)
		for (int i = 0; i < 300; i++) {
			int v;
			write_adder(p + off, i << 20 | i);
			ok &= call(p + off, 1) == (i << 20 | i) + 1;
			p[off + i % 4 + 1] ^= 0x55;
			memcpy(&v, p + off + 1, 4);
			ok &= call(p + off, 1) == v + 1;
		}
	say("across pages", ok);
}

// second_page maps others in the place of the page where an instruction goes on.
static void second_page(void)
{
	enum { OFF = PAGE - 3 };
	int fd = memfd_create("code", 0), ok = 1;
	ftruncate(fd, 3 * PAGE);
	uint8_t *file = mmap(0, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *p = pages(2, RWX), code[8];
	for (int k = 2; k >= 0; k--) {
		write_adder(code, 1 << 24 | 1);
		code[3] = code[4] = k;
		memcpy(file + k * PAGE, code + 3, 5);
	}
	memcpy(p + OFF, code, 3);
	for (int i = 0; i < 300; i++) {
		int k = (i * 7 + i / 3) % 3;
		mmap(p + PAGE, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, k * PAGE);
		ok &= call(p + OFF, 5) == (k << 24 | k << 16 | 1) + 5;
	}
	say("second page mapped anew", ok);
}

static void two_mappings(void)
{
	int fd = memfd_create("code", 0), ok = 1;
	ftruncate(fd, 4 * PAGE);
	uint8_t *w = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *x = mmap(0, 4 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	for (int i = 0; i < 20000; i++) {
		int off = i % 4 * 4000;
		write_adder(w + off, i);
		ok &= call(x + off, 2) == i + 2;
	}
	say("written by another mapping", ok);
}

static sigjmp_buf back;
static volatile int faults;

static void on_fault(int sig)
{
	faults++;
	siglongjmp(back, 1);
}

static void protected_code(void)
{
	uint8_t *p = pages(1, PROT_READ | PROT_WRITE);
	volatile int ok = 1, i;
	sigaction(SIGSEGV, &(struct sigaction){.sa_handler = on_fault, .sa_flags = SA_NODEFER}, 0);
	for (i = 0; i < 200; i++) {
		mprotect(p, PAGE, PROT_READ | PROT_WRITE);
		write_adder(p, i);
		if (!sigsetjmp(back, 1)) {
			call(p, 1);
			ok = 0;
		}
		mprotect(p, PAGE, PROT_READ | PROT_EXEC);
		ok &= call(p, 1) == i + 1;
		if (!sigsetjmp(back, 1)) {
			p[1] = 9;
			ok = 0;
		}
	}
	say("mprotect", ok && faults == 400);
}

static void forked(void)
{
	uint8_t *p = pages(1, RWX);
	int ok = 1, status;
	for (int i = 0; i < 20; i++) {
		write_adder(p, 1000 + i);
		ok &= call(p, 1) == 1001 + i;
		if (fork() == 0) {
			int same = call(p, 0) == 1000 + i;
			write_adder(p, 5000 + i);
			_exit(!(same && call(p, 2) == 5002 + i));
		}
		wait(&status);
		ok &= status == 0 && call(p, 1) == 1001 + i;
	}
	say("fork", ok);
}

static uint8_t *shared;
static volatile int stop;

static void *calls(void *unused)
{
	long ok = 1;
	do {
		int r = call(shared, 1);
		ok &= r == 101 || r == 201;
	} while (!stop);
	return (void *)ok;
}

static void other_thread(void)
{
	pthread_t t[3];
	int ok = 1;
	shared = pages(1, RWX);
	memset(shared, 0x90, 8); // so that the number is aligned
	write_adder(shared + 3, 100);
	for (int i = 0; i < 3; i++)
		pthread_create(&t[i], 0, calls, 0);
	for (int i = 0; i < 200000; i++)
		__atomic_store_n((int *)(shared + 4), i & 1 ? 100 : 200, __ATOMIC_SEQ_CST);
	stop = 1;
	for (int i = 0; i < 3; i++) {
		void *r;
		pthread_join(t[i], &r);
		ok &= r != 0;
	}
	say("changed by another thread", ok);
}

static void *calls_once(void *code) { return (void *)(long)call(code, 0); }

// endless ends loops of another thread's by changing a jump, and a number that they compare.
static void endless(void)
{
	static const uint8_t jump[] = {0xeb, 0xfe, 0xb8, 7, 0, 0, 0, 0xc3}; // jmp to itself; mov eax, 7; ret
	static const uint8_t number[] = {0x90, 0x90, 0x90, 0xb9, 0, 0, 0, 0, 0x85, 0xc9, 0x74, 0xf7, 0xb8, 7, 0, 0, 0, 0xc3}; // nops; mov ecx, 0; test ecx, ecx; jz to mov; mov eax, 7; ret
	int ok = 1;
	for (int i = 0; i < 20; i++) {
		pthread_t t;
		void *r;
		memcpy(shared, i & 1 ? jump : number, i & 1 ? sizeof jump : sizeof number);
		pthread_create(&t, 0, calls_once, shared);
		usleep(2000);
		if (i & 1)
			__atomic_store_n((uint16_t *)shared, 0x9090, __ATOMIC_SEQ_CST);
		else
			__atomic_store_n((int *)(shared + 4), 1, __ATOMIC_SEQ_CST);
		pthread_join(t, &r);
		ok &= (long)r == 7;
	}
	say("another thread's loop ended", ok);
}

static void read_into(void)
{
	uint8_t *p = pages(1, RWX), code[8];
	int fd[2], ok = 1;
	pipe(fd);
	for (int i = 0; i < 2000; i++) {
		write_adder(code, i * 3);
		write(fd[1], code, sizeof code);
		read(fd[0], p, sizeof code);
		ok &= call(p, 1) == i * 3 + 1;
	}
	say("read from a pipe", ok);
}

// moves_on copies itself behind itself and goes on there, a thousand times.
static void moves_on(void)
{
	static const uint8_t code[32] = {
		0x48, 0x8d, 0x35, 0xf9, 0xff, 0xff, 0xff, // lea rsi, [rip-7]
		0x48, 0x8d, 0x7e, 0x20,                   // lea rdi, [rsi+32]
		0xb9, 0x20, 0, 0, 0, 0xf3, 0xa4,          // mov ecx, 32; rep movsb
		0xff, 0xca, 0x74, 0x08,                   // dec edx; jz to ret
		0xff, 0xc0, 0xeb, 0x06,                   // inc eax; jmp behind the 32
		0x90, 0x90, 0x90, 0x90, 0xc3, 0x90};
	uint8_t *p = pages(16, RWX);
	int r = 0, n = 1000;
	memcpy(p, code, sizeof code);
	__asm__ volatile("call *%2" : "+a"(r), "+d"(n) : "r"(p) : "rsi", "rdi", "rcx", "memory", "cc");
	say("moves on", r == 999);
}

// many is more code than there is room for translations.
static void many(void)
{
	enum { N = 1024 * 64 };
	uint8_t *p = pages(1024, RWX);
	int ok = 1;
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < N; i++)
			write_adder(p + i * 64, i + round);
		for (int i = 0; i < N; i++)
			ok &= call(p + i * 64, round) == i + 2 * round;
	}
	say("much code", ok);
}

int main(void)
{
	rewritten();
	behind_a_jump();
	across_pages();
	second_page();
	two_mappings();
	protected_code();
	forked();
	other_thread();
	endless();
	read_into();
	moves_on();
	many();
	return 0;
}
