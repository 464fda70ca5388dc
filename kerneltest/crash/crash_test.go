package crash

import (
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	for _, c := range []struct{ name, console, want string }{
		{"healthy", "[    0.000000] Linux version 6.1\n[    1.0] Debug: BUG tracker\n[    1.0] Warning: unable to open", ""},
		{"panic", "[    1.0] x\n[    1.1] Kernel panic - not syncing: sysrq triggered crash\n[    1.2] CPU: 0", "panic"},
		{"oops and panic", "[ 1.0] BUG: kernel NULL pointer dereference, address: 0\n[ 1.0] Oops: 0002 [#1] SMP\n[ 1.0] ---[ end trace 0 ]---\n[ 1.0] Kernel panic - not syncing: Fatal exception", "oops, panic"},
		{"BUG", "[ 1.0] ------------[ cut here ]------------\n[ 1.0] kernel BUG at fs/x.c:1!\n[ 1.0] invalid opcode: 0000 [#1]", "BUG"},
		{"two warnings", "[ 1.0] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1\n[ 1.0] ---[ end trace 0 ]---\n" + strings.Repeat("[ 2.0] fine\n", 10) + "[ 3.0] WARNING: CPU: 0 PID: 1 at y.c:1", "WARNING; WARNING"},
		{"KASAN", "[ 1.0][  T1] ==================================================================\n[ 1.0][  T1] BUG: KASAN: use-after-free in f", "KASAN"},
		{"UBSAN", "[ 1.0] UBSAN: shift-out-of-bounds in x.c", "UBSAN"},
		{"lockdep", "[ 1.0] WARNING: possible circular locking dependency detected", "lockdep"},
		{"stall", "[ 1.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", "RCU stall"},
		{"hung", "[ 1.0] INFO: task sh:1 blocked for more than 120 seconds.", "hung task"},
		{"OOM", "[ 1.0] Out of memory: Killed process 1 (x)", "OOM"},
		{"lockup", "[ 1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!", "lockup"},
		{"sleeping", "[ 1.0] BUG: sleeping function called from invalid context at x.c:1", "BUG"},
		{"GPF", "[ 1.0] general protection fault, probably for non-canonical address", "oops"},
	} {
		var got []string
		for _, f := range Find(c.console) {
			got = append(got, f.Kind)
			if !strings.Contains(f.Excerpt, f.Line) {
				t.Errorf("%s: the excerpt lacks the line", c.name)
			}
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s: %q, want %q", c.name, s, c.want)
		}
	}
}

func TestAdvice(t *testing.T) {
	for console, want := range map[string]string{
		"": "CONFIG_SERIAL_8250_CONSOLE",
		"[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)": "CONFIG_BLK_DEV_INITRD",
		"[ 1.0] Kernel panic - not syncing: No working init found.":                             "CONFIG_BINFMT_ELF",
		"[ 1.0] Linux version": "",
	} {
		if got := Advice(console); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: %q", console, got)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add("[ 1.0] BUG: x\n[ 1.0] ---[ end trace ]---\nKernel panic - not syncing")
	f.Fuzz(func(t *testing.T, console string) {
		for _, x := range Find(console) {
			if strings.Count(x.Excerpt, "\n") > most+before {
				t.Error("an excerpt without end")
			}
		}
	})
}
