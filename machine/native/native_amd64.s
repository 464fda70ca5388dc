#include "go_asm.h"
#include "textflag.h"

// Offsets into Context; unit_test.go holds them to it.
#define ctxGPR(n) (8*n)(R15)
#define ctxFlags 128(R15)
#define ctxSP 136(R15)
#define ctxBP 144(R15)
#define ctxReturn 152(R15)
#define ctxMask 176(R15)
#define ctxAVX 184(R15)
#define ctxMXCSR 188(R15)
#define ctxXSave 512(R15)

// Offsets into Frame; unit_test.go holds them to it.
#define frameAttention 0(R9)
#define frameTrap 4(R9)
#define frameTrapAt 8(R9)
#define frameTrapExit 40(R9)

// func enter(ctx *Context, code uintptr)
//
// It loads all of ctx but RAX and R15, which the piece itself loads first, and jumps
// to the piece. The piece comes back by leave, with R15 pointing to ctx again.
TEXT ·enter(SB), NOSPLIT|NOFRAME, $0-16
	MOVQ ctx+0(FP), R15
	MOVQ code+8(FP), R14
	MOVQ SP, ctxSP
	MOVQ BP, ctxBP
	LEAQ ·leave(SB), AX
	MOVQ AX, ctxReturn
	MOVL ctxMask, AX
	XORL DX, DX
	XRSTOR64 ctxXSave
	PUSHQ ctxFlags
	POPFQ
	MOVQ R14, AX
	MOVQ ctxGPR(1), CX
	MOVQ ctxGPR(2), DX
	MOVQ ctxGPR(3), BX
	MOVQ ctxGPR(4), SP
	MOVQ ctxGPR(5), BP
	MOVQ ctxGPR(6), SI
	MOVQ ctxGPR(7), DI
	MOVQ ctxGPR(8), R8
	MOVQ ctxGPR(9), R9
	MOVQ ctxGPR(10), R10
	MOVQ ctxGPR(11), R11
	MOVQ ctxGPR(12), R12
	MOVQ ctxGPR(13), R13
	MOVQ ctxGPR(14), R14
	JMP AX

// leave is where a piece goes when it is done, and where the signal handler sends
// one that has trapped. R15 points to the context, in which R15 is saved already.
TEXT ·leave(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ AX, ctxGPR(0)
	MOVQ CX, ctxGPR(1)
	MOVQ DX, ctxGPR(2)
	MOVQ BX, ctxGPR(3)
	MOVQ SP, ctxGPR(4)
	MOVQ BP, ctxGPR(5)
	MOVQ SI, ctxGPR(6)
	MOVQ DI, ctxGPR(7)
	MOVQ R8, ctxGPR(8)
	MOVQ R9, ctxGPR(9)
	MOVQ R10, ctxGPR(10)
	MOVQ R11, ctxGPR(11)
	MOVQ R12, ctxGPR(12)
	MOVQ R13, ctxGPR(13)
	MOVQ R14, ctxGPR(14)
	MOVQ ctxSP, SP
	MOVQ ctxBP, BP
	PUSHFQ
	POPQ ctxFlags
	CLD
	MOVL ctxMask, AX
	XORL DX, DX
	XSAVE64 ctxXSave
	CMPL ctxAVX, $0
	JEQ  sse
	VZEROUPPER
sse:
	LDMXCSR ctxMXCSR
	RET

// handler is the process's handler of the signals that traps become. One in a piece
// ends the piece; any other goes to the handler that was there before.
TEXT ·handler(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	// DI: the signal, DX: struct ucontext, whose registers begin at 40
	MOVQ 168(DX), AX // RIP
	MOVQ AX, R9
	SUBQ ·codeBase(SB), R9
	CMPQ R9, $const_codeSize
	JAE  region
	CMPQ DI, $23     // SIGURG
	JEQ  other
	SHRQ $const_unitShift, R9
	SHLQ $const_contextShift, R9
	ADDQ ·contextBase(SB), R9
	MOVQ AX, 168(R9) // Context.trapAt
	MOVQ 200(DX), AX // the trap's number
	INCQ AX
	MOVQ AX, 160(R9) // Context.trap
	MOVQ 96(DX), AX  // R15
	MOVQ AX, 120(R9)
	MOVQ R9, 96(DX)
	LEAQ ·leave(SB), AX
	MOVQ AX, 168(DX)
	RET

	// Code of a Region: its Frame is where RSP points to, or behind that.
region:
	SUBQ $const_regionOffset, R9
	MOVQ $const_regionsSize, R10
	CMPQ R9, R10
	JAE  other
	MOVQ 160(DX), R9 // RSP
	ORQ  $8, R9      // where a routine is called, too
	CMPQ DI, $23
	JEQ  wanted
	MOVQ AX, frameTrapAt
	MOVQ 200(DX), AX
	INCQ AX
	MOVL AX, frameTrap
	MOVQ frameTrapExit, AX
	MOVQ AX, 168(DX)
	RET
wanted:
	LOCK
	ORL $const_AttendRuntime, frameAttention
other:
	LEAQ ·previous(SB), R8
	MOVQ (R8)(DI*8), AX
	JMP  AX

// func handlerAddress() uintptr
TEXT ·handlerAddress(SB), NOSPLIT, $0-8
	LEAQ ·handler(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func enterFrame(f *Frame, at uint64)
TEXT ·enterFrame(SB), NOSPLIT|NOFRAME, $0-16
	MOVQ f+0(FP), AX
	MOVQ at+8(FP), CX
	MOVQ SP, 16(AX)
	MOVQ BP, 24(AX)
	LEAQ ·leaveFrame(SB), DX
	MOVQ DX, 32(AX)
	MOVQ AX, SP
	JMP  CX

// leaveFrame is where code goes that is done, with the frame in RSP and RBP given back.
TEXT ·leaveFrame(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ 16(SP), SP
	RET
