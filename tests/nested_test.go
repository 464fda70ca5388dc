package tests

import (
	"path/filepath"
	"strings"
	"testing"
)

// virtualizes counts the CPUs of a VM's guest that have virtualization. One of Intel's has another line, of its "vmx flags".
const virtualizes = "grep -c -E '^flags.* (svm|vmx)( |$)' /proc/cpuinfo"

// TestNested shows guests the CPU's virtualization only where they are to have it,
// and saves what belongs to it.
func TestNested(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	if out, _ := vmm(t, "run", "--", "sh", "-c", virtualizes); out != "0\n" {
		t.Errorf("without --nested: %q CPUs have virtualization", out)
	}
	ok(t, "run", "-d", "--name", "n", "-m", "256M", "-c", "2", "--kernel", "default", "--nested")
	defer gone(t, "n", "again", "copy")
	out, _ := vmm(t, "exec", "n", "sh", "-c", virtualizes)
	if strings.TrimSpace(out) == "0" {
		t.Skip("this host's KVM has no nested virtualization")
	}
	if out != "2\n" {
		t.Errorf("with --nested: %q CPUs have virtualization", out)
	}
	snap := filepath.Join(t.TempDir(), "s")
	ok(t, "snapshot", "n", snap)
	ok(t, "restore", "-d", "--name", "again", snap)
	if out := ok(t, "exec", "again", "sh", "-c", virtualizes); out != "2" {
		t.Errorf("restored: %q CPUs have virtualization", out)
	}
	ok(t, "clone", "again", "copy")
	if out := ok(t, "exec", "copy", "sh", "-c", virtualizes); out != "2" {
		t.Errorf("copied: %q CPUs have virtualization", out)
	}
}
