package gdb

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"vmm/kvm"
)

// register is one that gdb knows, in its order.
type register struct {
	name string
	bits int
	kind string
	// get and set are nil where it is not offered.
	get func(*kvm.Regs, *kvm.Sregs) uint64
	set func(*kvm.Regs, uint64)
}

func general(name, kind string, at func(*kvm.Regs) *uint64) register {
	return register{name, 64, kind, func(r *kvm.Regs, _ *kvm.Sregs) uint64 { return *at(r) },
		func(r *kvm.Regs, v uint64) { *at(r) = v }}
}

func segment(name string, at func(*kvm.Sregs) *kvm.Segment) register {
	return register{name, 32, "int32", func(_ *kvm.Regs, s *kvm.Sregs) uint64 { return uint64(at(s).Selector) }, nil}
}

func special(name string, get func(*kvm.Sregs) uint64) register {
	return register{name, 64, "int64", func(_ *kvm.Regs, s *kvm.Sregs) uint64 { return get(s) }, nil}
}

// core are the registers of the feature org.gnu.gdb.i386.core.
var core = []register{
	general("rax", "int64", func(r *kvm.Regs) *uint64 { return &r.RAX }),
	general("rbx", "int64", func(r *kvm.Regs) *uint64 { return &r.RBX }),
	general("rcx", "int64", func(r *kvm.Regs) *uint64 { return &r.RCX }),
	general("rdx", "int64", func(r *kvm.Regs) *uint64 { return &r.RDX }),
	general("rsi", "int64", func(r *kvm.Regs) *uint64 { return &r.RSI }),
	general("rdi", "int64", func(r *kvm.Regs) *uint64 { return &r.RDI }),
	general("rbp", "data_ptr", func(r *kvm.Regs) *uint64 { return &r.RBP }),
	general("rsp", "data_ptr", func(r *kvm.Regs) *uint64 { return &r.RSP }),
	general("r8", "int64", func(r *kvm.Regs) *uint64 { return &r.R8 }),
	general("r9", "int64", func(r *kvm.Regs) *uint64 { return &r.R9 }),
	general("r10", "int64", func(r *kvm.Regs) *uint64 { return &r.R10 }),
	general("r11", "int64", func(r *kvm.Regs) *uint64 { return &r.R11 }),
	general("r12", "int64", func(r *kvm.Regs) *uint64 { return &r.R12 }),
	general("r13", "int64", func(r *kvm.Regs) *uint64 { return &r.R13 }),
	general("r14", "int64", func(r *kvm.Regs) *uint64 { return &r.R14 }),
	general("r15", "int64", func(r *kvm.Regs) *uint64 { return &r.R15 }),
	general("rip", "code_ptr", func(r *kvm.Regs) *uint64 { return &r.RIP }),
	{"eflags", 32, "i386_eflags", func(r *kvm.Regs, _ *kvm.Sregs) uint64 { return r.RFLAGS },
		func(r *kvm.Regs, v uint64) { r.RFLAGS = r.RFLAGS&^0xffffffff | v }},
	segment("cs", func(s *kvm.Sregs) *kvm.Segment { return &s.CS }),
	segment("ss", func(s *kvm.Sregs) *kvm.Segment { return &s.SS }),
	segment("ds", func(s *kvm.Sregs) *kvm.Segment { return &s.DS }),
	segment("es", func(s *kvm.Sregs) *kvm.Segment { return &s.ES }),
	segment("fs", func(s *kvm.Sregs) *kvm.Segment { return &s.FS }),
	segment("gs", func(s *kvm.Sregs) *kvm.Segment { return &s.GS }),
}

// float are those that the feature must have too; a kernel seldom uses them, and
// they are not offered.
var float = func() (out []register) {
	for i := range 8 {
		out = append(out, register{name: fmt.Sprintf("st%d", i), bits: 80, kind: "i387_ext"})
	}
	for _, n := range []string{"fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"} {
		out = append(out, register{name: n, bits: 32, kind: "int"})
	}
	return out
}()

// segments are the feature org.gnu.gdb.i386.segments.
var segments = []register{
	special("fs_base", func(s *kvm.Sregs) uint64 { return s.FS.Base }),
	special("gs_base", func(s *kvm.Sregs) uint64 { return s.GS.Base }),
}

// system are further registers, in a feature of our own.
var system = []register{
	special("cr0", func(s *kvm.Sregs) uint64 { return s.CR0 }),
	special("cr2", func(s *kvm.Sregs) uint64 { return s.CR2 }),
	special("cr3", func(s *kvm.Sregs) uint64 { return s.CR3 }),
	special("cr4", func(s *kvm.Sregs) uint64 { return s.CR4 }),
	special("efer", func(s *kvm.Sregs) uint64 { return s.EFER }),
}

var registers = func() (all []register) {
	for _, f := range features {
		all = append(all, f.registers...)
	}
	return all
}()

var features = []struct {
	name      string
	registers []register
}{
	{"org.gnu.gdb.i386.core", append(append([]register{}, core...), float...)},
	{"org.gnu.gdb.i386.segments", segments},
	{"vmm.system", system},
}

// targetXML describes the registers (GDB manual, appendix G).
var targetXML = sync.OnceValue(func() string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0"><architecture>i386:x86-64</architecture>`)
	for i, f := range features {
		fmt.Fprintf(&b, `<feature name="%s">`, f.name)
		if i == 0 {
			b.WriteString(`<flags id="i386_eflags" size="4">`)
			for _, bit := range []struct {
				name string
				at   int
			}{{"CF", 0}, {"PF", 2}, {"AF", 4}, {"ZF", 6}, {"SF", 7}, {"TF", 8}, {"IF", 9}, {"DF", 10}, {"OF", 11}, {"NT", 14}, {"RF", 16}, {"VM", 17}, {"AC", 18}} {
				fmt.Fprintf(&b, `<field name="%s" start="%d" end="%d"/>`, bit.name, bit.at, bit.at)
			}
			b.WriteString(`</flags>`)
		}
		for _, r := range f.registers {
			fmt.Fprintf(&b, `<reg name="%s" bitsize="%d" type="%s"/>`, r.name, r.bits, r.kind)
		}
		b.WriteString(`</feature>`)
	}
	b.WriteString(`</target>`)
	return b.String()
})

// text is a register's value as the protocol has it: x where there is none.
func (r *register) text(regs *kvm.Regs, sregs *kvm.Sregs) string {
	if r.get == nil {
		return strings.Repeat("x", r.bits/4)
	}
	b := binary.LittleEndian.AppendUint64(nil, r.get(regs, sregs))
	return hex.EncodeToString(b[:r.bits/8])
}

// parse sets a register from the beginning of a text, and returns the rest.
func (r *register) parse(s string, regs *kvm.Regs) (rest string, ok bool) {
	n := r.bits / 4
	if len(s) < n {
		return "", false
	}
	if r.set == nil || strings.HasPrefix(s, "x") {
		return s[n:], true
	}
	b, err := hex.DecodeString(s[:n])
	if err != nil {
		return "", false
	}
	r.set(regs, binary.LittleEndian.Uint64(append(b, make([]byte, 8)...)))
	return s[n:], true
}
