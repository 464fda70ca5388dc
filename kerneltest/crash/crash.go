// Package crash finds what a kernel's console says of its own faults.
package crash

import (
	"regexp"
	"strings"
	"sync"

	"vmm/kerneltest/ktap"
)

// Finding is one fault.
type Finding struct {
	Kind    string // such as "panic" or "KASAN"
	Line    string // that tells of it
	Excerpt string
}

// kind is a fault by what the line says that tells of it.
type kind struct {
	name string
	expr *regexp.Regexp
}

// kinds are the faults, in the order in which a line is tried for them. They are
// compiled when they are needed: vmm's other commands should start at once.
var kinds = sync.OnceValue(func() []kind {
	return []kind{
		{"panic", regexp.MustCompile(`Kernel panic - not syncing`)},
		{"KASAN", regexp.MustCompile(`BUG: KASAN:`)},
		{"KCSAN", regexp.MustCompile(`BUG: KCSAN:`)},
		{"KMSAN", regexp.MustCompile(`BUG: KMSAN:`)},
		{"KFENCE", regexp.MustCompile(`BUG: KFENCE:`)},
		{"UBSAN", regexp.MustCompile(`^UBSAN:`)},
		{"lockdep", regexp.MustCompile(`possible (circular|recursive) locking|inconsistent lock state|suspicious RCU usage|bad unlock balance|held lock freed|lock held when returning to user space|-(un)?safe lock order detected`)},
		{"lockup", regexp.MustCompile(`BUG: soft lockup|hard LOCKUP`)},
		{"RCU stall", regexp.MustCompile(`rcu: INFO: rcu_\S+ (self-)?detected (expedited )?stall|rcu_\S+ kthread starved`)},
		{"hung task", regexp.MustCompile(`INFO: task .* blocked for more than`)},
		{"OOM", regexp.MustCompile(`Out of memory: |Memory cgroup out of memory: `)},
		{"BUG", regexp.MustCompile(`kernel BUG at |list_(add|del) corruption`)},
		{"oops", regexp.MustCompile(`BUG: unable to handle|BUG: kernel NULL pointer|general protection fault|^Oops: |invalid opcode: |divide error: |stack segment: |^int3: `)},
		{"BUG", regexp.MustCompile(`^BUG: `)},
		{"WARNING", regexp.MustCompile(`^WARNING: `)},
	}
})

const (
	before = 3  // lines of an excerpt in front of the fault
	most   = 60 // lines of an excerpt
	// merged is how many lines after a fault another belongs to it: an oops is
	// followed by a panic.
	merged = most
)

// endOfTrace ends an excerpt.
var endOfTrace = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`---\[ end |^={20,}$`) })

// Find returns the faults of a console. One that follows from another at once is
// a part of it.
func Find(console string) []Finding {
	lines := strings.Split(strings.ReplaceAll(console, "\r", ""), "\n")
	var out []Finding
	quiet := 0 // lines that belong to the last finding
	for i, line := range lines {
		body := ktap.Printk(line)
		kind := kindOf(body)
		switch {
		case kind == "":
		case i < quiet && kind == "panic" && len(out) > 0:
			out[len(out)-1].Kind += ", panic"
		case i >= quiet:
			end := excerptEnd(lines, i)
			out = append(out, Finding{kind, strings.TrimSpace(body), strings.Join(lines[max(0, i-before):end], "\n")})
			quiet = i + merged
		}
		if i < quiet && strings.Contains(body, "---[ end trace") {
			quiet = min(quiet, i+2*before) // what follows is another matter, but for a panic
		}
	}
	return out
}

func kindOf(line string) string {
	for _, k := range kinds() {
		if k.expr.MatchString(line) {
			return k.name
		}
	}
	return ""
}

// excerptEnd is the line after those that tell of the fault in line i.
func excerptEnd(lines []string, i int) int {
	end := min(len(lines), i+most)
	for k := i + 1; k < end; k++ {
		if endOfTrace().MatchString(ktap.Printk(lines[k])) && k > i+before {
			return k + 1
		}
	}
	return end
}

// Advice explains a kernel that did not get as far as the guest's init, by what its
// console says; empty if it does not know.
func Advice(console string) string {
	switch {
	case strings.TrimSpace(console) == "":
		return "the kernel printed nothing: it needs CONFIG_SERIAL_8250_CONSOLE, and to be for x86-64"
	case strings.Contains(console, "Unable to mount root fs"), strings.Contains(console, "VFS: Cannot open root device"):
		return "the kernel did not take the initial RAM disk: it needs CONFIG_BLK_DEV_INITRD (and CONFIG_RD_GZIP or what it is compressed with)"
	case strings.Contains(console, "No working init found"), strings.Contains(console, "Failed to execute /init"):
		return "the kernel did not start the guest's init: it needs CONFIG_BINFMT_ELF"
	}
	return ""
}
