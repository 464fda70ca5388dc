// 32-bit code: this 64-bit program goes to the segment that systems have for 32-bit programs and
// comes back. A line a piece of code, with the registers and the memory that it has left.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static uint8_t *low; // memory below 4 GiB: code, data from 0x1000 on, a stack from 0x2000 down

static void run(const char *name, const uint8_t *begin, const uint8_t *end)
{
	// A far return goes to segment 0x23; behind the code, a far jump to another far return, at low, goes back to 0x33.
	uint8_t *p = low + 64;
	memcpy(p, begin, end - begin);
	p += end - begin;
	uint32_t back = (uint32_t)(uintptr_t)low;
	*p++ = 0xea; // jmp 0x33:low
	memcpy(p, &back, 4);
	memcpy(p + 4, (uint8_t[]){0x33, 0}, 2);
	low[0] = 0xcb; // retf, whose operands are 32-bit
	uint32_t *data = (uint32_t *)(low + 0x1000);
	for (int i = 0; i < 32; i++)
		data[i] = 0x01010101 * i + 0x3f800000;
	uint64_t a = 0x1111111122222222, c = 0x3333333344444444, d = 0xffffffff00000000 | (uintptr_t)data, f;
	// On the low stack: where 64-bit code goes on, popped by the far return at low, and above it the code.
	__asm__ volatile("mov %%rsp, %%r12\n"
	                 "mov %%rbx, %%r13\n" // whose upper halves 32-bit code may lose
	                 "mov %%rbp, %%r14\n"
	                 "lea 0x1ff0(%[low]), %%rsp\n"
	                 "lea 1f(%%rip), %%rax\n"
	                 "mov %%eax, (%%rsp)\n"
	                 "movl $0x33, 4(%%rsp)\n"
	                 "sub $8, %%rsp\n"
	                 "lea 64(%[low]), %%rax\n"
	                 "mov %%eax, (%%rsp)\n"
	                 "movl $0x23, 4(%%rsp)\n"
	                 "mov %%ss, %%eax\n"
	                 "mov %%eax, %%ds\n"
	                 "mov %%eax, %%es\n"
	                 "mov %[a], %%rax\n"
	                 "clc\n"
	                 "lret\n" // 32-bit operands
	                 "1: mov %%r12, %%rsp\n"
	                 "mov %%r13, %%rbx\n"
	                 "mov %%r14, %%rbp\n"
	                 "pushfq\n"
	                 "pop %[f]\n"
	                 "mov %%rax, %[a]\n"
	                 : [a] "+r"(a), "+c"(c), "+d"(d), [f] "=&r"(f) : [low] "r"(low) : "rax", "rsi", "rdi", "r8", "r9", "r10", "r12", "r13", "r14", "xmm0", "xmm1", "st", "memory", "cc");
	printf("%s: eax %08x ecx %08x edx %+d flags %02x, memory", name, (uint32_t)a, (uint32_t)c, (int)((uint32_t)d - (uint32_t)(uintptr_t)data), (int)(f & 0xc1));
	for (int i = 0; i < 12; i++)
		printf(" %08x", data[i]);
	printf("\n");
	fflush(stdout);
}

#define CODE(name, text) \
	extern const uint8_t name[], name##_end[]; \
	__asm__(".section .rodata\n.code32\n" #name ": " text "\n" #name "_end:\n.code64\n.text")

CODE(integers, "inc %eax; dec %ecx; add %eax, %ecx; imul $7, %ecx; bswap %eax; shld $5, %ecx, %eax; pusha; popa; adc $3, %al; push %edx; mul %ecx; pop %edx");
CODE(decimals, "mov $0x1279, %eax; daa; aaa; mov $57, %ecx; aam; xchg %eax, %ecx; aad; cmp %al, %cl");
CODE(memory, "mov 4(%edx), %eax; xadd %eax, 8(%edx); lock incl (%edx); mov $3, %ecx; cmpxchg %ecx, 12(%edx); btsl $70, (%edx); push 4(%edx); popl 16(%edx)");
CODE(wrapped, "sub $64, %edx; mov $-1, %ecx; mov 72(%edx), %eax; mov 76(%edx,%ecx,4), %ecx; add $64, %edx; cmp %eax, %ecx");
CODE(strings, "cld; mov %edx, %esi; lea 20(%edx), %edi; mov $3, %ecx; rep movsl; lodsb; scasb; stosw; cmp %esi, %edi");
CODE(sse, "movups 4(%edx), %xmm0; inc %eax; movaps %xmm0, %xmm1; addps %xmm1, %xmm0; dec %ecx; movdqu %xmm0, 16(%edx); cvttss2si (%edx), %eax; paddd 16(%edx), %xmm1; movd %xmm1, %ecx; ucomiss %xmm0, %xmm1");
CODE(x87, "fldpi; fld1; fadds (%edx); fcomi %st(1); fcmovb %st(1), %st; fstpl 8(%edx); fistpl 20(%edx); fildl 20(%edx); fisttpl 24(%edx); cmp $1, %eax");
CODE(frames, "push %ebp; call 1f; 1: pop %eax; sub %edx, %eax; enter $16, $0; movl $9, -4(%ebp); mov -4(%ebp), %ecx; leave; pop %ebp; cmp %eax, %ecx");
CODE(addresses16, "push %ebx; mov $4, %ebx; lea 3(%bx), %cx; movzx %cx, %ecx; pop %ebx; lea -1(%ecx,%ecx,8), %eax; test %eax, %eax");

int main(void)
{
	low = mmap(0, 0x3000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
#define RUN(name) run(#name, name, name##_end)
	RUN(integers);
	RUN(decimals);
	RUN(memory);
	RUN(wrapped);
	RUN(strings);
	RUN(sse);
	RUN(x87);
	RUN(frames);
	RUN(addresses16);
	return 0;
}
