/* A guest without a kernel, entered by PVH in 32-bit mode, built four times:
   OFF ends it by isa-debug-exit at once, SPIN loops for ever, LATER ends when
   something comes in at the serial port, and EXITS=n
   goes to user mode, does n writes to where nothing is, and ends by a triple
   fault. */
	.section .note.Xen, "a", @note
	.long 4, 4, 18
	.asciz "Xen"
	.long _start

	.text
	.code32
	.globl _start
_start:
#if defined(OFF)
	mov $0x501, %dx
	xor %eax, %eax
	out %al, %dx
	hlt
#elif defined(SPIN)
1:	jmp 1b
#elif defined(LATER)
	mov $0x3f9, %dx /* IER: receive */
	mov $1, %al
	out %al, %dx
	mov $0x3fc, %dx /* MCR: OUT2, without which nobody listens */
	mov $8, %al
	out %al, %dx
	mov $0x3fd, %dx /* LSR: data ready */
1:	in %dx, %al
	test $1, %al
	jz 1b
	mov $0x501, %dx
	xor %eax, %eax
	out %al, %dx
	hlt
#else
	/* Tables that map the first 4 GiB to themselves, open to user mode. */
	movl $(pdpt + 7), pml4
	movl $(pd + 7), pdpt
	movl $(pd + 0x1007), pdpt + 8
	movl $(pd + 0x2007), pdpt + 16
	movl $(pd + 0x3007), pdpt + 24
	/* Only what is used: 16 MiB of RAM, and the hole at 3.25 GiB. */
	xor %ecx, %ecx
1:	mov %ecx, %eax
	shl $21, %eax
	or $0x87, %eax
	mov %eax, pd(, %ecx, 8)
	inc %ecx
	cmp $16, %ecx
	jne 1b
	movl $(0xd0000000 + 0x87), pd + 8 * 1664
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000001, %eax
	mov %eax, %cr0
	lgdt gdtr
	ljmp $8, $long
	.code64
long:	mov $stack, %esp
	push $0x1b
	push $stack
	push $2
	push $0x23
	push $user
	iretq
user:	mov $0xd0000000, %edi
	mov $EXITS, %ecx
	test %ecx, %ecx
	jz 2f
1:	mov %al, (%rdi)
	dec %ecx
	jnz 1b
2:	ud2

	.data
	.balign 16
gdt:	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
gdtr:	.word gdtr - gdt - 1
	.long gdt
	.bss
	.balign 4096
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4 * 4096
	.skip 4096
stack:
#endif
