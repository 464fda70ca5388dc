package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bochs is the emulator of that name, which interprets Intel's CPUs with all that they
// have for virtual machines.
type bochs struct{}

const (
	// bochsModel is a CPU whose XSAVE Linux takes: of those of bochs 2.7 with AVX-512, the sizes and the order of the
	// state are not what CPUID says, and the time stamp counter has a frequency that is not the emulator's, by
	// which all of a host's clocks disagree.
	bochsModel = "corei7_haswell_4770"
	// bochsSpeed is how many instructions the CPU executes in a second of the host, which therefore takes some seconds.
	// With more of them the kernel waits longer for devices, with fewer tests have less in their time.
	bochsSpeed  = 250_000_000
	bochsMemory = 2048 // MiB
	// bochsKernel leaves out what bochs has no registers for: it would log each tick.
	bochsKernel = "clearcpuid=aperfmperf"
	// bootDiskSize is that of a FAT disk of the kernel and the initial RAM disk, in bytes.
	bootDiskSize = 64 << 20
)

// What a host is started with.
var (
	//go:embed bochsrc.txt
	bochsConfig string
	//go:embed syslinux.cfg
	syslinuxConfig string
)

func (bochs) module() string { return "kvm-intel" }
func (bochs) tools() []string {
	return []string{"bochs", "syslinux", "mformat", "mcopy"}
}
func (bochs) covers(t *hostTest) bool  { return t.intel }
func (bochs) skips(t *hostTest) string { return t.notBochs }
func (bochs) pace(job) pace {
	return pace{boot: 20 * time.Minute, standstill: 10 * time.Minute, limits: 10}
}

// command implements emulator. Debian's bochs has a debugger, which waits for a command.
func (bochs) command(ctx context.Context, h *host, j job, dir, console string) (*exec.Cmd, error) {
	cmdline, err := j.cmdline("/dev/sdb", "/dev/sdc", bochsKernel)
	if err != nil {
		return nil, err
	}
	if err := disks(ctx, h, dir, cmdline); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"bochsrc": bochsrc(dir, console), "debugger": "continue\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	c := exec.CommandContext(ctx, "bochs", "-q", "-unlock", "-f", "bochsrc", "-rc", "debugger")
	c.Dir = dir
	c.Env = append(os.Environ(), "TERM=vt100")
	return c, nil
}

// bochsrc is the configuration of a host.
func bochsrc(dir, console string) string {
	return strings.NewReplacer("@MODEL@", bochsModel, "@IPS@", strconv.Itoa(bochsSpeed), "@MEMORY@", strconv.Itoa(bochsMemory),
		"@DIR@", dir, "@CONSOLE@", console, "@OUTPUT@", output).Replace(bochsConfig)
}

// disks makes a host's disks: the one that it boots, as bochs can start no kernel by itself, and copies of the others,
// for a large disk that bochs was to leave as it is ("volatile") was not read right once it had been written to.
func disks(ctx context.Context, h *host, dir, cmdline string) error {
	disk, config := filepath.Join(dir, "boot.img"), filepath.Join(dir, "syslinux.cfg")
	if err := os.WriteFile(config, []byte(strings.Replace(syslinuxConfig, "@CMDLINE@", cmdline, 1)), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(disk, bootDiskSize); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mformat", "-i", disk, "-h", "16", "-s", "63", "-T", strconv.Itoa(bootDiskSize / 512), "::"},
		{"syslinux", "--install", disk},
		{"mcopy", "-i", disk, config, "::syslinux.cfg"},
		{"mcopy", "-i", disk, h.kernel, "::bzImage"},
		{"mcopy", "-i", disk, h.initrd, "::initrd"},
		{"cp", "--sparse=always", "--reflink=auto", h.root, filepath.Join(dir, "root.ext4")},
		{"cp", "--sparse=always", "--reflink=auto", h.bundle, filepath.Join(dir, "tests.ext4")},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("the host's disks: %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// screen is the line that says which pseudoterminal a host's screen is.
var screen = regexp.MustCompile(`Bochs connected to screen "(.+)"`)

// attend implements emulator. It reads what is drawn on the host's screen: bochs has no display for nobody, and
// stands still when a terminal takes no more.
func (bochs) attend(ctx context.Context, dir string) {
	for {
		said, _ := os.ReadFile(ownWords(dir))
		if m := screen.FindSubmatch(said); m != nil {
			if terminal, err := os.OpenFile(string(m[1]), os.O_RDONLY|unix.O_NOCTTY, 0); err == nil {
				defer terminal.Close()
				io.Copy(io.Discard, terminal) // until bochs ends
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}
