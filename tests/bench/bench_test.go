// Package bench compares vmm with its peers on the same work, in one run. Its
// numbers are ratios: these machines are too noisy for times.
//
//	make bench
package bench

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmm/tests/programs"
)

// It is no test of correctness, so it runs only when asked for.
var compare = flag.Bool("compare", false, "compare with QEMU")

const (
	rounds   = 9
	memoryMB = 128
)

// build makes vmm and the payload with the given definition.
func build(t *testing.T, define string) (vmm, payload string) {
	t.Helper()
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
	}
	vmm, payload = buildVMM(t), filepath.Join(t.TempDir(), "payload")
	if out, err := exec.Command("gcc", "-nostdlib", "-static", "-Wl,--build-id=none,-Ttext=0x1000000,-z,noexecstack",
		"-D"+define, "-o", payload, "payload.S").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return vmm, payload
}

// buildVMM makes vmm as make does.
func buildVMM(t *testing.T) string {
	t.Helper()
	path, err := programs.Build(t.TempDir(), "vmm", "vmm/cmd/vmm")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func vmmArgs(payload string) []string {
	return []string{"run", "--engine", "kvm", "--kernel", payload, "--boot-protocol", "pvh", "-m", fmt.Sprint(memoryMB), "--console", "none"}
}

func qemuArgs(payload string) []string {
	return []string{"-M", "microvm,accel=kvm", "-cpu", "host,-arch-capabilities", "-m", fmt.Sprint(memoryMB), "-kernel", payload,
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-device", "isa-debug-exit,iobase=0x501,iosize=2"}
}

// timed runs a command to its end.
func timed(t *testing.T, name string, args ...string) time.Duration {
	t.Helper()
	start := time.Now()
	c := exec.Command(name, args...)
	done := time.AfterFunc(5*time.Minute, func() { c.Process.Kill() })
	defer done.Stop()
	out, err := c.CombinedOutput()
	d := time.Since(start)
	if c.ProcessState == nil || c.ProcessState.ExitCode() < 0 {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return d
}

// ratio reports a/b of pairs measured one after the other: the median, and
// the range.
func ratio(t *testing.T, what string, a, b []float64, unit string) {
	t.Helper()
	r := ratios(a, b)
	fmt.Printf("%-34s %.3f (%.3f to %.3f)   ours %.4g %s, theirs %.4g %s\n",
		what, r.median, r.least, r.most, spreadOf(a).median, unit, spreadOf(b).median, unit)
}

// spread is what is said of several measurements.
type spread struct{ median, least, most float64 }

func spreadOf(values []float64) spread {
	s := slices.Sorted(slices.Values(values))
	return spread{s[len(s)/2], s[0], s[len(s)-1]}
}

// ratios is of a/b, pair by pair: what disturbs both of a pair is not in it.
func ratios(a, b []float64) spread {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return spreadOf(r)
}

// TestCompareStart compares the time from exec to exit.
func TestCompareStart(t *testing.T) {
	vmm, payload := build(t, "OFF")
	var a, b []float64
	for range rounds {
		a = append(a, timed(t, vmm, vmmArgs(payload)...).Seconds()*1e3)
		b = append(b, timed(t, "qemu-system-x86_64", qemuArgs(payload)...).Seconds()*1e3)
	}
	ratio(t, "exec to exit", a, b, "ms")
	out, err := exec.Command(vmm, append(vmmArgs(payload), "-v")...).CombinedOutput()
	if _, rest, ok := strings.Cut(string(out), "set up in "); ok {
		setup, _, _ := strings.Cut(rest, ",")
		fmt.Printf("%-34s vmm %s from main to the first KVM_RUN\n", "", setup)
	} else {
		t.Logf("%v\n%s", err, out)
	}
}

// TestCompareMemory compares the resident memory without the guest's.
func TestCompareMemory(t *testing.T) {
	vmm, payload := build(t, "SPIN")
	var a, b []float64
	for range 3 {
		a = append(a, overhead(t, vmm, vmmArgs(payload)...))
		b = append(b, overhead(t, "qemu-system-x86_64", qemuArgs(payload)...))
	}
	ratio(t, "resident memory less the guest's", a, b, "MiB")
}

// overhead starts a VMM and adds up what is resident but for the guest's RAM.
func overhead(t *testing.T, name string, args ...string) float64 {
	t.Helper()
	c := exec.Command(name, args...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	time.Sleep(2 * time.Second) // by then it has given back what its start needed
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var total, size float64
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "Size:":
			size = n
		case "Rss:":
			if size != memoryMB<<10 {
				total += n
			}
		}
	}
	return total / 1024
}

// TestCompareExits compares MMIO exits a second, made from guest user mode.
func TestCompareExits(t *testing.T) {
	const many = 20000
	vmm, none := build(t, "EXITS=0")
	_, full := build(t, fmt.Sprintf("EXITS=%d", many))
	rate := func(name string, args func(string) []string) float64 {
		base := timed(t, name, args(none)...)
		return many / max(timed(t, name, args(full)...)-base, 1).Seconds() / 1e3
	}
	var a, b []float64
	for range rounds {
		a = append(a, rate(vmm, vmmArgs))
		b = append(b, rate("qemu-system-x86_64", qemuArgs))
	}
	ratio(t, "MMIO exits (higher is better)", a, b, "k/s")
}
