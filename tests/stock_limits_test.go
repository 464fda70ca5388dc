package tests

import (
	"bytes"
	"debug/elf"
	_ "embed"
	"encoding/binary"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// limitsScript says in a guest what holds of limits there.
//
//go:embed limits.sh
var limitsScript string

// TestStockLimits looks at limits on a host whose first process is systemd: a Debian in a VM, in which root and a user start VMs, as
// services, in sessions, and in scopes with delegation.
func TestStockLimits(t *testing.T) {
	if os.Getenv("VMM_TEST_STOCK") == "" {
		t.Skip("make test-stock runs this")
	}
	needTools(t, "debootstrap", "mke2fs", "sfdisk", "mkfs.xfs", "mkfs.btrfs")
	program, err := os.ReadFile(vmmPath)
	if err != nil {
		t.Fatal(err)
	}
	_, disk := installed(t, debian(t), map[string]string{
		// The terminal is taken away when somebody is asked to log in there.
		"etc/systemd/system/check.service": "[Service]\nType=oneshot\nEnvironment=HOME=/root\nExecStart=/bin/sh -c '" +
			"{ useradd -m -u 1000 user; systemctl start user@1000; sh /limits.sh root; su -l user -c \"sh /limits.sh user\"; } >/seen 2>&1; " +
			"cat /seen >/dev/ttyS0; systemctl --no-block poweroff'\n",
		"limits.sh":         limitsScript,
		"halt":              halting(t),
		"usr/local/bin/vmm": string(program),
	})
	start := time.Now()
	out, status := vmm(t, "run", "--disk", disk, "-m", "2G", "--net", "none", "--timeout", "15m", "--engine", "software")
	t.Logf("took %v", time.Since(start))
	const (
		system  = "/sys/fs/cgroup/system.slice/"
		session = `/sys/fs/cgroup/user.slice/user-1000.slice/session-\w+\.scope`
		manager = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/"
		group   = `run-\w+\.scope/vmm/bounded-\d+`
		bounds  = "\n%cpu.max 50000 100000\n%memory.max 268435456\n%memory.swap.max 0\n%pids.max 90\n"
		killed  = "%its process was killed, as it seems by the host, for it needed more memory than its limit\n"
		scope   = `systemd-run (--user )?--scope -p Delegate=yes vmm \.\.\. starts vmm where limits can be had`
		grant   = "root has systemd give users more by Delegate=cpu memory pids io for user@.service"
	)
	for user, want := range map[string]string{
		"root": "%vmm: limits: the cgroup controller cpu cannot be had: systemd has not delegated " + system + "check.service; " + scope + ` \(docs/jail.md\)` +
			"\n%limits +none: systemd has not delegated " + system + "check.service\n% +" + scope +
			"\n%bounded" + bounds + `%io.max \d+:0 rbps=max wbps=20971520 riops=max wiops=max` + "\n%processes 1, it is in " + system + group +
			"\n%greedy\n" + killed,
		"user": "%vmm: limits: the cgroup controller cpu cannot be had: this user may not write to " + session + "; " + scope + ` \(docs/jail.md\)` +
			"\n%limits +none: this user may not write to " + session + "\n% +" + scope +
			"\n%vmm: limits: the cgroup controller io cannot be had: not delegated to " + manager + `run-\w+\.scope; ` + grant + ` \(docs/jail.md\)` +
			"\n%limits +cpu, memory, pids; not io: not delegated to " + manager + `run-\w+\.scope` + "\n% +" + grant +
			"\n%bounded" + bounds + "%processes 1, it is in " + manager + group +
			"\n%greedy\n" + killed,
	} {
		seen := strings.Join(regexp.MustCompile(`(?m)^SEEN `+user+` .*$`).FindAllString(strings.ReplaceAll(out, "\r", ""), -1), "\n") + "\n"
		if !regexp.MustCompile("^" + strings.ReplaceAll(want, "%", "SEEN "+user+" ") + "$").MatchString(seen) {
			t.Errorf("status %d, %s:\n%s\nand not\n%s", status, user, seen, want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// halting is a kernel that does nothing but halt.
func halting(t *testing.T) string {
	t.Helper()
	const at = 16 << 20
	code := []byte{0xf4, 0xeb, 0xfd} // hlt; jmp to it
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Entry: at, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(header.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}))
	load := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: 64 + 56, Vaddr: at, Paddr: at, Filesz: uint64(len(code)), Memsz: uint64(len(code)), Align: 1}
	var b bytes.Buffer
	for _, part := range []any{header, load, code} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}
