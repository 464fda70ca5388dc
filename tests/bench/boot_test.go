package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
)

// counters are KVM's statistics of a VM, by name (<debugfs>/kvm/TID-FD, of the thread
// that made it).
type counters map[string]int64

// shownCounters are those that the table has, where the host's KVM has them.
var shownCounters = []string{"exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "irq_injections", "insn_emulation", "pf_taken", "signal_exits"}

const kvmStatistics = "/sys/kernel/debug/kvm"

// countedVMs are the VMs that KVM counts for. They are named after the thread that made
// each, which may have ended.
func countedVMs() []string {
	dirs, _ := filepath.Glob(kvmStatistics + "/*-*")
	return dirs
}

// readCounters reads those of the VM that has exited most often of those that were not there
// before: a process may have had another one, such as for a probe.
func readCounters(before []string) counters {
	var best counters
	for _, d := range countedVMs() {
		if slices.Contains(before, d) {
			continue
		}
		c := counters{}
		for _, n := range shownCounters {
			if b, err := os.ReadFile(filepath.Join(d, n)); err == nil {
				c[n], _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			}
		}
		if c["exits"] > best["exits"] {
			best = c
		}
	}
	return best
}

func (c counters) since(before counters) counters {
	d := counters{}
	for n, v := range c {
		d[n] = v - before[n]
	}
	return d
}

// bootGuest is a guest's init. It tells where it is, and waits a little then, so
// that what KVM has counted can be read.
const bootGuest = `#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
say() { echo "AT $1"; sleep 1; }
say init
%s
reboot -f
`

// busyGuest is what a guest does with its devices. Each part begins when the one
// before has been counted.
const busyGuest = `sleep 5
say idle
dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct 2>/dev/null
say blocks
ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; sleep 2; ping -q -c 20 10.0.2.2 >/dev/null
say link
ping -q -A -c 300 10.0.2.2 >/dev/null
say packets
`

// What busyGuest does, and so what its counts are divided by.
const (
	idleSeconds = 5 + 1
	busyBlocks  = 1000
	busyPings   = 300
)

// bootInitrd makes an initial RAM disk with a script in the guest's init, and further files.
func bootInitrd(t *testing.T, script string, more ...cpio.Record) string {
	t.Helper()
	busybox, err := (&guestimages.Builder{}).Busybox(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	b, err := guestimages.Archive(append([]cpio.Record{cpio.StaticFile("bin/busybox", string(busybox), 0o755), cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), cpio.StaticFile("init", fmt.Sprintf(bootGuest, script), 0o755)}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// passage is a guest's way from exec to exit: what KVM had counted where it said
// that it is there, and when, and all that it said.
type passage struct {
	counts map[string]counters
	at     map[string]time.Duration
	total  time.Duration
	said   string
}

// pass runs a VMM until its guest ends.
func pass(t *testing.T, name string, args ...string) passage {
	t.Helper()
	p := passage{counts: map[string]counters{}, at: map[string]time.Duration{}}
	before := countedVMs()
	start := time.Now()
	c := exec.Command(name, args...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	const limit = 3 * time.Minute
	kill := time.AfterFunc(limit, func() { c.Process.Kill() })
	defer kill.Stop()
	var all bytes.Buffer
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		all.Write(buf[:n])
		for line := range strings.Lines(all.String()) {
			where, ok := strings.CutPrefix(strings.TrimSpace(line), "AT ")
			if _, known := p.at[where]; ok && !known && strings.HasSuffix(line, "\n") {
				p.at[where], p.counts[where] = time.Since(start), readCounters(before)
			}
		}
		if err == io.EOF {
			break
		}
	}
	c.Wait()
	p.total, p.said = time.Since(start), all.String()
	if !kill.Stop() {
		t.Fatalf("%s did not end within %v:\n%s", name, limit, all.String())
	}
	if _, ok := p.at["init"]; !ok {
		t.Fatalf("%s did not come to its init:\n%s", name, all.String())
	}
	return p
}

// TestCompareBoot boots the same kernel and initial RAM disk in vmm and in QEMU, and
// compares the exits that KVM has counted until init, by reason. They do not depend
// on what else the machine does.
func TestCompareBoot(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := os.ReadDir(kvmStatistics); err != nil {
		t.Skipf("KVM's statistics cannot be read: %v (as root, with debugfs)", err)
	}
	kernel, ok := guestimages.SlimKernelELF()
	if !ok {
		t.Skip("no default guest: vmm setup makes it")
	}
	vmm, dir := buildVMM(t), t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 64<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	// QEMU's microvm has no keyboard controller to reset it: only a triple fault ends all.
	const cmdline = "console=ttyS0 panic=-1 quiet reboot=t"
	ours := func(initrd string, more ...string) []string {
		return append([]string{"run", "--engine", "kvm", "--kernel", kernel, "--initrd", initrd, "-m", "256M", "--no-agent", "--append", cmdline}, more...)
	}
	theirs := func(machine, initrd string, more ...string) []string {
		return append([]string{"-M", machine, "-accel", "kvm", "-cpu", "host", "-m", "256M", "-kernel", kernel, "-initrd", initrd, "-append", cmdline,
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"}, more...)
	}
	lean, leaner := "microvm", "microvm,pit=off,pic=off,rtc=on"
	blk := []string{"-drive", "id=d,if=none,format=raw,file=" + disk, "-netdev", "user,id=n"}
	mmio := append(blk, "-device", "virtio-blk-device,drive=d", "-device", "virtio-net-device,netdev=n")
	pci := append(blk, "-device", "virtio-blk-pci,drive=d", "-device", "virtio-net-pci,netdev=n")
	boot, busy := bootInitrd(t, ""), bootInitrd(t, busyGuest)
	rivals := []struct {
		name       string
		boot, busy []string
	}{
		{"vmm", ours(boot, "--net", "none"), ours(busy, "--disk", disk+",format=raw")},
		{"QEMU " + leaner, theirs(leaner, boot), theirs(leaner, busy, mmio...)},
		{"QEMU " + lean, theirs(lean, boot), theirs(lean, busy, mmio...)},
		{"QEMU q35", theirs("q35", boot), theirs("q35", busy, pci...)},
	}
	program := func(name string) string {
		if name == "vmm" {
			return vmm
		}
		return "qemu-system-x86_64"
	}

	t.Run("exits", func(t *testing.T) {
		fmt.Printf("exits to init of a guest without devices\n%-34s %s\n", "", strings.Join(shownCounters, " "))
		for _, r := range rivals {
			row(r.name, pass(t, program(r.name), r.boot...).counts["init"])
		}
	})
	t.Run("work", func(t *testing.T) {
		fmt.Printf("exits of a guest's work, each\n%-34s %10s %10s %10s\n", "", "idle s", "4 KiB read", "ping")
		for _, r := range rivals {
			p := pass(t, program(r.name), r.busy...)
			per := func(from, to string, n int64) float64 {
				return float64(p.counts[to].since(p.counts[from])["exits"]) / float64(n)
			}
			fmt.Printf("%-34s %10.1f %10.2f %10.2f\n", r.name, per("init", "idle", idleSeconds), per("idle", "blocks", busyBlocks), per("link", "packets", busyPings))
		}
	})
	t.Run("times", func(t *testing.T) {
		for _, r := range rivals[1:] {
			var init, total [2][]float64
			for range rounds {
				for i, x := range []struct {
					name string
					args []string
				}{{"vmm", rivals[0].boot}, {r.name, r.boot}} {
					p := pass(t, program(x.name), x.args...)
					init[i], total[i] = append(init[i], p.at["init"].Seconds()), append(total[i], p.total.Seconds())
				}
			}
			ratio(t, "to init: "+r.name, init[0], init[1], "s")
			ratio(t, "exec to exit: "+r.name, total[0], total[1], "s")
		}
	})
}

func row(name string, c counters) {
	fmt.Printf("%-34s", name)
	for _, n := range shownCounters {
		fmt.Printf(" %*d", len(n), c[n])
	}
	fmt.Println()
}
