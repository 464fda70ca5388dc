package main

import (
	"encoding/binary"
	"unsafe"
)

// cpus is how many CPUs attack.
const cpus = 2

// stackSize is that of a CPU's stack: 1 << STACK_SHIFT.
const stackSize = 1 << 18

// What cpu_amd64.s wants.
var (
	bootParams uint64
	faults     uint64
	g          [cpus][512]byte
	tls        [cpus][2]uint64
	stacks     [cpus * stackSize]byte
	gdtr, idtr [10]byte
	gdt        [taskSelector/8 + 2*cpus]uint64
	idt        [256][2]uint64
	tasks      [cpus][26]uint32
	// root is where the page tables begin, which have a page more than they need.
	root        uint64
	pageTables  [7 * 512]uint64
	secondEntry uint64
)

// What is used from there only.
var _, _, _ = run, &g, &tls

// addresses are those of the code for exceptions, interrupts and the second CPU.
func addresses() (fault, interrupt, second uint64)

// breathe lets interrupts in for n moments.
func breathe(n uint64)

// restart begins the first CPU again, with the tables that there are now.
func restart()

// store and load access n bytes (1, 2, 4 or 8) of memory or of a device, out and in n
// bytes (1, 2 or 4) of a port.
func store(addr, v, n uint64)
func load(addr, n uint64) uint64
func out(port, v, n uint64)
func in(port, n uint64) uint64

// outs and ins are string instructions, as copyBytes is.
func outs(port, from, count uint64)
func ins(port, to, count uint64)
func copyBytes(to, from, count uint64)

// These access a device by instructions that no driver uses.
func exchange(addr, v uint64)
func change(addr, v uint64)
func push(addr, v uint64)
func wide(addr uint64)
func execute(addr uint64)

func writeMSR(msr, v uint64)

// trampolineAt is where the second CPU begins.
const trampolineAt = 0x8000

// trampoline takes a CPU from real mode straight to long mode. Three addresses are put into it.
const (
	trampoline = "\xfa" + // cli
		"\x31\xc0\x8e\xd8" + // xor ax, ax; mov ds, ax
		"\x66\x0f\x01\x16\xf0\x80" + // lgdt [gdtrAt]
		"\x66\xb8\x20\x06\x00\x00\x0f\x22\xe0" + // mov cr4: PAE, OSFXSR, OSXMMEXCPT
		"\x66\xb8\x00\x00\x00\x00\x0f\x22\xd8" + // mov cr3, root
		"\x66\xb9\x80\x00\x00\xc0\x0f\x32\x66\x0d\x00\x01\x00\x00\x0f\x30" + // EFER: LME
		"\x66\xb8\x11\x00\x00\x80\x0f\x22\xc0" + // mov cr0: PE, ET, PG
		"\x66\xea\x00\x00\x00\x00\x10\x00" // jmp far second
	rootAt   = trampolineAt + 22
	secondAt = trampolineAt + 56
	gdtrAt   = trampolineAt + 0xf0
)

// Selectors: the boot protocol's (boot.rst), and of the CPUs' task states.
const (
	codeSelector = 0x10
	dataSelector = 0x18
	taskSelector = 0x20
)

// Of a page table entry (SDM 3, 4.5).
const mapped, largePage = 1 | 2, 1 << 7

// prepare makes tables for the CPUs, where devices seldom write: memory up to 64 GiB
// mapped to itself, all exceptions and interrupts caught, exceptions on stacks of their own.
func prepare() {
	first := -uint64(uintptr(unsafe.Pointer(&pageTables))) / 8 % 512
	tables := pageTables[first:]
	at := uint64(uintptr(unsafe.Pointer(&tables[0])))
	tables[0] = at + 4096 | mapped
	for i := range uint64(4) {
		tables[512+i] = at + 4096*(2+i) | mapped
	}
	for i := range uint64(4 * 512) {
		tables[1024+i] = i<<21 | mapped | largePage
	}
	for i := uint64(4); i < 64; i++ {
		tables[512+i] = i<<30 | mapped | largePage
	}

	gdt[codeSelector/8], gdt[dataSelector/8] = 0x00af9b000000ffff, 0x00cf93000000ffff
	for i := range tasks {
		t := uint64(uintptr(unsafe.Pointer(&tasks[i])))
		gdt[taskSelector/8+2*i] = uint64(len(tasks[i])*4-1) | t&0xffffff<<16 | 0x89<<40 | t>>24&0xff<<56
		gdt[taskSelector/8+2*i+1] = t >> 32
		stack := uint64(uintptr(unsafe.Pointer(&stacks))) + uint64(i)*stackSize + faultStack
		tasks[i][9], tasks[i][10] = uint32(stack), uint32(stack>>32) // IST1
	}
	fault, interrupt, second := addresses()
	for i := range idt {
		const nmi, firstInterrupt, ist1, interruptGate = 2, 32, 1 << 32, 0x8e << 40
		to, how := fault, uint64(codeSelector<<16|interruptGate)
		if i == nmi || i >= firstInterrupt {
			to = interrupt
		}
		if i < firstInterrupt {
			how |= ist1
		}
		idt[i] = [2]uint64{to&0xffff | how | to>>16&0xffff<<48, to >> 32}
	}
	describe(&gdtr, uint64(uintptr(unsafe.Pointer(&gdt))), len(gdt)*8)
	describe(&idtr, uint64(uintptr(unsafe.Pointer(&idt))), len(idt)*16)
	root, secondEntry = at, second
}

// faultStack is how much of the lower end of a CPU's stack is for exceptions.
const faultStack = 4096

// describe fills what GDTR and IDTR are loaded with.
func describe(to *[10]byte, at uint64, n int) {
	binary.LittleEndian.PutUint16(to[:], uint16(n-1))
	binary.LittleEndian.PutUint64(to[2:], at)
}

// Of the local APIC (SDM 3, 10).
const (
	lapic         = 0xfee00000
	lapicSpurious = lapic + 0xf0
	lapicICR      = lapic + 0x300
	lapicICRHigh  = lapic + 0x310
	ipiInit       = 0x4500
	ipiStartup    = 0x4600
)

// startSecond starts the second CPU, or starts it again.
func startSecond() {
	for i := range uint64(len(trampoline)) {
		store(trampolineAt+i, uint64(trampoline[i]), 1)
	}
	store(rootAt, root, 4)
	store(secondAt, secondEntry, 4)
	for i := range uint64(len(gdtr)) {
		store(gdtrAt+i, uint64(gdtr[i]), 1)
	}
	store(lapicSpurious, 0x1ff, 4)
	for _, ipi := range [...]uint64{ipiInit, ipiStartup | trampolineAt>>12, ipiStartup | trampolineAt>>12} {
		store(lapicICRHigh, 1<<24, 4)
		store(lapicICR, ipi, 4)
		for range 1000 {
			in(0x80, 1)
		}
	}
}
