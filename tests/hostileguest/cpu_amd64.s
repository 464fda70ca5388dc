#include "textflag.h"

// How the CPUs come into Go, and what Go has no words for. Go's own start never runs: a
// CPU has a g with nothing in it but zeros, so that no stack is ever too small, and
// thread-local storage that points to it.

#define STACK_SHIFT 18 // of stackSize
#define TASKS 0x20     // taskSelector

// entry is the 64-bit Linux boot protocol's (boot.rst): memory is mapped to itself, and
// SI points to boot_params.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	CLI
	MOVQ SI, ·bootParams(SB)
	XORL DI, DI
	JMP  ·begin(SB)

// second is where the second CPU comes to from trampoline.
TEXT ·second(SB), NOSPLIT|NOFRAME, $0
	MOVW $0x18, AX // __BOOT_DS
	MOVW AX, DS
	MOVW AX, ES
	MOVW AX, SS
	MOVL $1, DI
	JMP  ·begin(SB)

// begin has CPU DI attack, from the beginning of its stack. Before prepare there are
// no tables of its own.
TEXT ·begin(SB), NOSPLIT|NOFRAME, $0
	CLI
	CLD
	MOVQ CR4, AX
	ORQ  $0x600, AX // OSFXSR, OSXMMEXCPT
	MOVQ AX, CR4
	MOVQ ·root(SB), AX
	TESTQ AX, AX
	JZ   early
	MOVQ AX, CR3

	// Its task state, which is not busy.
	LEAQ ·gdtr(SB), AX
	BYTE $0x0f; BYTE $0x01; BYTE $0x10 // LGDT (AX)
	LEAQ ·idtr(SB), AX
	BYTE $0x0f; BYTE $0x01; BYTE $0x18 // LIDT (AX)
	MOVQ DI, AX
	SHLQ $4, AX
	ADDQ $TASKS, AX
	LEAQ ·gdt(SB), BX
	MOVB $0x89, 5(BX)(AX*1)
	BYTE $0x0f; BYTE $0x00; BYTE $0xd8 // LTR AX
early:

	// g, and FS for thread-local storage, which lies below it.
	MOVQ DI, R8
	SHLQ $9, R8
	LEAQ ·g(SB), AX
	ADDQ AX, R8
	LEAQ ·tls(SB), AX
	MOVQ DI, BX
	SHLQ $4, BX
	ADDQ BX, AX
	MOVQ R8, (AX)
	ADDQ $8, AX
	MOVQ AX, DX
	SHRQ $32, DX
	MOVL $0xc0000100, CX // IA32_FS_BASE
	WRMSR

	MOVQ DI, R8
	INCQ R8
	SHLQ $STACK_SHIFT, R8
	LEAQ ·stacks(SB), SP
	ADDQ R8, SP
	SUBQ $64, SP
	MOVQ DI, 0(SP)
	CALL ·run(SB)
	HLT

// fault is where exceptions go: the CPU begins again, with what comes next.
TEXT ·fault(SB), NOSPLIT|NOFRAME, $0
	LOCK
	INCQ ·faults(SB)
	BYTE $0x0f; BYTE $0x00; BYTE $0xc8 // STR AX
	MOVWLZX AX, DI
	SUBL $TASKS, DI
	SHRL $4, DI
	JMP  ·begin(SB)

// interrupt is where interrupts and NMIs go.
TEXT ·interrupt(SB), NOSPLIT|NOFRAME, $0
	PUSHQ AX
	MOVL $0xfee000b0, AX // the local APIC's EOI
	MOVL $0, (AX)
	POPQ AX
	IRETQ

// func addresses() (fault, interrupt, second uint64)
TEXT ·addresses(SB), NOSPLIT, $0-24
	LEAQ ·fault(SB), AX
	MOVQ AX, fault+0(FP)
	LEAQ ·interrupt(SB), AX
	MOVQ AX, interrupt+8(FP)
	LEAQ ·second(SB), AX
	MOVQ AX, second+16(FP)
	RET

// func restart()
TEXT ·restart(SB), NOSPLIT|NOFRAME, $0
	XORL DI, DI
	JMP  ·begin(SB)

// func breathe(n uint64)
TEXT ·breathe(SB), NOSPLIT, $0-8
	MOVQ n+0(FP), CX
	STI
again:
	PAUSE
	DECQ CX
	JNZ  again
	CLI
	RET

// func store(addr, v, n uint64)
TEXT ·store(SB), NOSPLIT, $0-24
	MOVQ addr+0(FP), DI
	MOVQ v+8(FP), AX
	MOVQ n+16(FP), CX
	CMPQ CX, $1
	JEQ  one
	CMPQ CX, $2
	JEQ  two
	CMPQ CX, $4
	JEQ  four
	MOVQ AX, (DI)
	RET
one:
	MOVB AX, (DI)
	RET
two:
	MOVW AX, (DI)
	RET
four:
	MOVL AX, (DI)
	RET

// func load(addr, n uint64) uint64
TEXT ·load(SB), NOSPLIT, $0-24
	MOVQ addr+0(FP), SI
	MOVQ n+8(FP), CX
	XORL AX, AX
	CMPQ CX, $1
	JEQ  one
	CMPQ CX, $2
	JEQ  two
	CMPQ CX, $4
	JEQ  four
	MOVQ (SI), AX
	JMP  done
one:
	MOVB (SI), AX
	JMP  done
two:
	MOVW (SI), AX
	JMP  done
four:
	MOVL (SI), AX
done:
	MOVQ AX, ret+16(FP)
	RET

// func out(port, v, n uint64)
TEXT ·out(SB), NOSPLIT, $0-24
	MOVQ port+0(FP), DX
	MOVQ v+8(FP), AX
	MOVQ n+16(FP), CX
	CMPQ CX, $1
	JEQ  one
	CMPQ CX, $2
	JEQ  two
	OUTL
	RET
one:
	OUTB
	RET
two:
	OUTW
	RET

// func in(port, n uint64) uint64
TEXT ·in(SB), NOSPLIT, $0-24
	MOVQ port+0(FP), DX
	MOVQ n+8(FP), CX
	XORL AX, AX
	CMPQ CX, $1
	JEQ  one
	CMPQ CX, $2
	JEQ  two
	INL
	JMP  done
one:
	INB
	JMP  done
two:
	INW
done:
	MOVQ AX, ret+16(FP)
	RET

// func outs(port, from, count uint64)
TEXT ·outs(SB), NOSPLIT, $0-24
	MOVQ port+0(FP), DX
	MOVQ from+8(FP), SI
	MOVQ count+16(FP), CX
	REP; OUTSB
	RET

// func ins(port, to, count uint64)
TEXT ·ins(SB), NOSPLIT, $0-24
	MOVQ port+0(FP), DX
	MOVQ to+8(FP), DI
	MOVQ count+16(FP), CX
	REP; INSB
	RET

// func copyBytes(to, from, count uint64)
TEXT ·copyBytes(SB), NOSPLIT, $0-24
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ count+16(FP), CX
	REP; MOVSB
	RET

// func exchange(addr, v uint64)
TEXT ·exchange(SB), NOSPLIT, $0-16
	MOVQ addr+0(FP), DI
	MOVQ v+8(FP), AX
	XCHGL AX, (DI)
	RET

// func change(addr, v uint64)
TEXT ·change(SB), NOSPLIT, $0-16
	MOVQ addr+0(FP), DI
	MOVQ v+8(FP), AX
	LOCK
	ORL  AX, (DI)
	ADDW AX, (DI)
	NOTB (DI)
	LOCK
	CMPXCHGQ AX, (DI)
	RET

// func push(addr, v uint64)
TEXT ·push(SB), NOSPLIT|NOFRAME, $0-16
	MOVQ addr+0(FP), DI
	MOVQ v+8(FP), AX
	MOVQ SP, BX
	MOVQ DI, SP
	PUSHQ AX
	POPQ AX
	MOVQ BX, SP
	RET

// func wide(addr uint64)
TEXT ·wide(SB), NOSPLIT, $0-8
	MOVQ addr+0(FP), DI
	MOVUPS X0, (DI)
	MOVUPS (DI), X1
	RET

// func execute(addr uint64)
TEXT ·execute(SB), NOSPLIT, $0-8
	MOVQ addr+0(FP), AX
	CALL AX
	RET

// func writeMSR(msr, v uint64)
TEXT ·writeMSR(SB), NOSPLIT, $0-16
	MOVQ msr+0(FP), CX
	MOVQ v+8(FP), AX
	MOVQ AX, DX
	SHRQ $32, DX
	WRMSR
	RET
