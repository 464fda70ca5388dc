package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
	"vmm/internal/x86"
)

// They are flags because hosts differ tenfold, and engines a hundredfold.
var (
	softwareRounds = flag.Int("software-rounds", 5, "how often each side of TestCompareSoftware runs its guest")
	softwareWork   = flag.Int("software-work", 10, "how many percent of the computing a guest of TestCompareSoftware does")
)

// cost is a row of the table.
type cost struct {
	name   string // as the guest says it
	shown  string
	factor float64 // from nanoseconds of one turn to the unit that is shown
}

// costs are the guest's (costs/costs.c), and behind them the host's two.
var costs = []cost{
	{"getppid", "getppid, us", 1e-3},
	{"fault", "anonymous page fault, us", 1e-3},
	{"fork", "fork and wait, us", 1e-3},
	{"exec", "exec of a static true and wait, us", 1e-3},
	{"pipe", "pipe, there and back, us", 1e-3},
	{"add", "100 M additions to memory, s", 1e8 * 1e-9},
	{"integer", "integer loop, a turn, ns", 1},
	{"sse2", "SSE2 loop, a turn, ns", 1},
	{"near", "pointer chasing in 512 KiB, ns", 1},
	{"far", "pointer chasing in 4 MiB, ns", 1},
	{bootCost, "boot to the program, power off, s", 1e-9},
	{clockCost, "guest's clock by the host's", 1},
}

const (
	bootCost = "boot"
	// clockCost is what the guest's clock makes of a second. All figures but the boot's are by that
	// clock, which the guest has measured itself: where it is far from 1, they are wrong by as much.
	clockCost = "clock"
)

// costInitrd makes an initial RAM disk of costs/costs.c and a true for it to execute.
func costInitrd(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	compiled := func(name string, source ...string) string {
		path := filepath.Join(dir, name)
		c := exec.Command("gcc", append([]string{"-O2", "-static", "-s", "-o", path}, source...)...)
		c.Stdin = strings.NewReader("int main(void) { return 0; }\n")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	b, err := guestimages.Archive(cpio.StaticFile("init", compiled("costs", "costs/costs.c"), 0o755),
		cpio.StaticFile("true", compiled("true", "-x", "c", "-"), 0o755),
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initrd")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// readCosts returns what a guest has measured and what the host has, in nanoseconds of one turn.
func readCosts(t *testing.T, p passage) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	for line := range strings.Lines(p.said) {
		var name string
		var n, took float64
		if _, err := fmt.Sscanf(line, "COST %s %g %g", &name, &n, &took); err == nil {
			got[name] = took / n
		}
	}
	if end, ok := p.at["end"]; ok {
		got[bootCost] = float64(p.at["init"] + p.total - end)
		got[clockCost] = got["all"] / float64(end-p.at["init"])
	}
	for _, c := range costs {
		if got[c.name] <= 0 {
			t.Fatalf("of what the guest should have said, %q is missing:\n%s", c.name, p.said)
		}
	}
	return got
}

// hostKHz measures the host's TSC.
func hostKHz() float64 {
	start, before := time.Now(), x86.RDTSC()
	time.Sleep(200 * time.Millisecond)
	took, after := time.Since(start), x86.RDTSC()
	return float64(after-before) / float64(took) * 1e6
}

// side is who runs the guest, and what each thing cost in it, a value a round.
type side struct {
	name, program string
	args          []string
	got           map[string][]float64
}

// TestCompareSoftware compares vmm's software engine with QEMU's TCG, and where there is KVM, with
// that, too: the same kernel and program, one CPU, no devices.
func TestCompareSoftware(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	sides := softwareSides(t, costInitrd(t), fmt.Sprintf("WORK=%d", max(*softwareWork, 1)))
	runSides(t, sides, readCosts)
	printCosts(sides, costs)
}

// softwareSides are QEMU's TCG, vmm's software engine and, where there is KVM, that: each with the default
// guest's kernel, one CPU and no devices. It skips the test where something is missing.
func softwareSides(t *testing.T, initrd, arguments string) []*side {
	t.Helper()
	const qemu = "qemu-system-x86_64"
	if _, err := exec.LookPath(qemu); err != nil {
		t.Skip(qemu + " is not installed: apt-get install qemu-system-x86")
	}
	kernel, ok := guestimages.HasSlimKernel()
	if !ok {
		t.Skip("no default guest: vmm setup makes it")
	}
	vmm := buildVMM(t)
	cmdline := "console=ttyS0 panic=-1 reboot=t quiet " + arguments
	// TCG's TSC is the host's. Linux has only the PIT there to find out how fast it is, which a busy
	// host may prevent; without a TSC it waits for ticks that do not come, and half of the boots hang.
	khz := fmt.Sprintf(" tsc_early_khz=%.0f", hostKHz())
	ours := func(engine string) []string {
		return []string{"run", "--engine", engine, "--kernel", kernel, "--initrd", initrd, "-m", "512M", "-c", "1",
			"--net", "none", "--no-agent", "--append", cmdline}
	}
	sides := []*side{
		{name: "QEMU's TCG", program: qemu, args: []string{"-M", "microvm,rtc=on", "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "1",
			"-kernel", kernel, "-initrd", initrd, "-append", cmdline + khz,
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"}},
		{name: "software engine", program: vmm, args: ours("software")},
	}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		sides = append(sides, &side{name: "KVM", program: vmm, args: ours("kvm")})
	}
	return sides
}

// runSides has each side run its guest as often as is wanted, in turns, and keeps what read makes of it.
func runSides(t *testing.T, sides []*side, read func(*testing.T, passage) map[string]float64) {
	t.Helper()
	for _, s := range sides {
		s.got = map[string][]float64{}
	}
	for range max(*softwareRounds, 1) {
		for _, s := range sides {
			for name, v := range read(t, pass(t, s.program, s.args...)) {
				s.got[name] = append(s.got[name], v)
			}
		}
	}
}

// printCosts prints the sides' medians, and their ratios to the first one's: what is over 1 took
// longer than there.
func printCosts(sides []*side, costs []cost) {
	line := fmt.Sprintf("%-34s %10s", "medians of a guest's figures", sides[0].name)
	for _, s := range sides[1:] {
		line += fmt.Sprintf(" | %15s  %-23s", s.name, "ratio (least to most)")
	}
	fmt.Println(strings.TrimSpace(line))
	for _, c := range costs {
		base := sides[0].got[c.name]
		line := fmt.Sprintf("%-34s %10s", c.shown, digits(spreadOf(base).median*c.factor))
		for _, s := range sides[1:] {
			r := ratios(s.got[c.name], base)
			line += fmt.Sprintf(" | %15s  %-23s", digits(spreadOf(s.got[c.name]).median*c.factor),
				digits(r.median)+" ("+digits(r.least)+" to "+digits(r.most)+")")
		}
		fmt.Println(strings.TrimSpace(line))
	}
}

// digits has three digits of a number that are not zero, or all that it has before the point.
func digits(f float64) string {
	if f >= 100 {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.3g", f)
}
