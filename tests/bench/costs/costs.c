/* The guest of TestCompareSoftware: it is the first process of a guest, measures what system calls,
   page faults, processes, pipes and computing cost there, and powers the guest off. It says where it
   is, as every guest of package bench does, and what each took:

	AT init
	COST getppid 20000 6600000
	COST all 1 980000000
	AT end

   The last number is in nanoseconds, for as many as the one before it says; "all" is from AT init to AT
   end, by which the host can tell whether the guest's clock is right. WORK in the environment, where Linux
   puts an argument that it does not know, is how many percent of the computing to do: a host may be a
   hundred times as slow as another one, and the figures are of one turn anyway.

   It is C, because fork and the exact instructions of a loop are not to be had of Go, and static,
   because nothing else is in the guest. */
#include <emmintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

/* check ends the program if a system call has failed, for its figure would be none. The guest's kernel
   panics then, and what it says is in the test's log. */
static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Each of these does something n times and returns the nanoseconds that it took, without what has to be
   done before and after. */

static int64_t getppids(long n)
{
	int64_t start = now();

	for (long i = 0; i < n; i++)
		syscall(SYS_getppid); /* not the library's, which might remember it */
	return now() - start;
}

static int64_t faults(long n)
{
	char *p = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t start, took;

	check(p != MAP_FAILED, "mmap");
	start = now();
	for (long i = 0; i < n; i++)
		*(volatile char *)(p + i * PAGE) = 1;
	took = now() - start;
	munmap(p, n * PAGE);
	return took;
}

static void await(pid_t pid)
{
	int status;

	check(pid > 0 && waitpid(pid, &status, 0) == pid, "a process");
	check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a process's end");
}

static int64_t forks(long n)
{
	int64_t start = now();

	for (long i = 0; i < n; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		await(pid);
	}
	return now() - start;
}

/* spawn has no variable that the process could change in its parent, whose memory it has until exec. */
static __attribute__((noinline)) pid_t spawn(void)
{
	pid_t pid = vfork();

	if (pid == 0) {
		execl("/true", "true", (char *)NULL);
		_exit(1);
	}
	return pid;
}

static int64_t execs(long n)
{
	int64_t start = now();

	for (long i = 0; i < n; i++)
		await(spawn());
	return now() - start;
}

/* pipes sends a byte to another process, which sends it back. */
static int64_t pipes(long n)
{
	int there[2], back[2];
	int64_t start, took;
	char c = 0;
	pid_t pid;

	check(pipe(there) == 0 && pipe(back) == 0, "pipe");
	pid = fork();
	if (pid == 0) {
		close(there[1]);
		while (read(there[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
			;
		_exit(0);
	}
	close(there[0]);
	close(back[1]);
	start = now();
	for (long i = 0; i < n; i++)
		check(write(there[1], &c, 1) == 1 && read(back[0], &c, 1) == 1, "a pipe");
	took = now() - start;
	close(there[1]);
	close(back[0]);
	await(pid);
	return took;
}

/* sink keeps the compiler from leaving out what nobody looks at. */
static volatile uint64_t sink;

/* additions reads, adds and writes at one place in memory. */
static int64_t additions(long n)
{
	int64_t start = now();

	for (long i = 0; i < n; i++)
		sink += i;
	return now() - start;
}

/* integers stays in registers: shifts, exclusive ors, a multiplication, and a branch that nobody can
   foresee. */
static int64_t integers(long n)
{
	uint64_t x = 88172645463325252, odd = 0;
	int64_t start = now();

	for (long i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		if (x * UINT64_C(0x2545f4914f6cdd1d) >> 63)
			__asm__ volatile("incq %0" : "+r"(odd)); /* or it would be no branch */
	}
	sink = x + odd;
	return now() - start;
}

/* vectors adds and multiplies doubles, and adds and mixes integers, in a buffer that is in any cache. */
static int64_t vectors(long n)
{
	static __m128i buffer[256];
	__m128d sum = _mm_set1_pd(1), factor = _mm_set1_pd(0.5);
	__m128i key = _mm_set_epi32(1, 3, 5, 7);
	int64_t start = now();

	for (long i = 0; i < n; i++) {
		__m128i v = _mm_add_epi32(_mm_load_si128(&buffer[i % 256]), key);

		sum = _mm_add_pd(_mm_mul_pd(sum, factor), _mm_cvtepi32_pd(v));
		_mm_store_si128(&buffer[i % 256], _mm_xor_si128(v, _mm_shuffle_epi32(v, 0x39)));
	}
	sink = (uint64_t)_mm_cvtsd_f64(sum);
	return now() - start;
}

/* A list whose elements lie in no order, a cache line each: every step waits for the one before it, and
   most go to another page. */
struct node {
	struct node *next;
	char rest[56];
};

#define NEAR 8192 /* 512 KiB: 128 pages, which any TLB has */
#define FAR 65536 /* 4 MiB: 1024 pages, of which a TLB may lack most */

/* chase goes through a list of a power of two of elements. */
static int64_t chase(long n, uint32_t count)
{
	static struct node nodes[FAR];
	struct node *p = nodes;
	int64_t start;

	/* A full cycle: such a generator's numbers come again only after all have been there. */
	for (uint32_t i = 0; i < count; i++)
		nodes[i].next = &nodes[(i * 16645 + 13849) % count];
	start = now();
	for (long i = 0; i < n; i++)
		p = p->next;
	sink = (uint64_t)(uintptr_t)p;
	return now() - start;
}

static int64_t near(long n)
{
	return chase(n, NEAR);
}

static int64_t far(long n)
{
	return chase(n, FAR);
}

/* What is measured, and how often: some ten milliseconds of the fastest, and a few seconds of the slowest;
   of the computing, 100 percent. */
static const struct {
	const char *name;
	int64_t (*measure)(long n);
	long n;
	int computing;
} costs[] = {
	{"getppid", getppids, 20000, 0},
	{"fault", faults, 4000, 0},
	{"fork", forks, 40, 0},
	{"exec", execs, 20, 0},
	{"pipe", pipes, 1000, 0},
	{"add", additions, 100000000, 1},
	{"integer", integers, 50000000, 1},
	{"sse2", vectors, 20000000, 1},
	{"near", near, 50000000, 1},
	{"far", far, 20000000, 1},
};

static void report(const char *name, long n, int64_t took)
{
	printf("COST %s %ld %lld\n", name, n, (long long)took);
}

int main(void)
{
	const char *work = getenv("WORK");
	long percent = work ? atol(work) : 100;
	int64_t start;

	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("AT init");
	start = now();
	for (size_t i = 0; i < sizeof costs / sizeof *costs; i++) {
		long n = costs[i].computing ? costs[i].n / 100 * percent : costs[i].n;

		costs[i].measure(n / 20 + 1); /* so that what is made or translated once is there */
		report(costs[i].name, n, costs[i].measure(n));
	}
	report("all", 1, now() - start);
	puts("AT end");
	tcdrain(STDOUT_FILENO);
	reboot(RB_POWER_OFF);
	perror("reboot");
	return 1;
}
