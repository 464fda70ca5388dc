package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// qemu is QEMU's TCG, which emulates AMD's SVM.
type qemu struct{}

// cpuModel is an AMD CPU with SVM and nested paging, as far as TCG emulates one.
// XSAVE is left out, unless a job's guests do not see it: TCG does not intercept a guest's XSETBV,
// so that KVM would lose the guest's XCR0.
const (
	cpuModel     = "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save"
	withoutXSAVE = ",-xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-fma,-f16c"
)

const (
	hostMemory = "6G"
	// nudge is how often a host gets an interrupt: TCG loses one of its APIC's now
	// and then, and any other brings it back.
	nudge = time.Second
)

func (qemu) module() string         { return "kvm-amd" }
func (qemu) tools() []string        { return []string{"qemu-system-x86_64"} }
func (qemu) covers(*hostTest) bool  { return true }
func (qemu) skips(*hostTest) string { return "" }

// pace implements emulator. Where clocks count instructions, five seconds are 5e9 of them.
func (qemu) pace(j job) pace {
	if j.counted {
		return pace{boot: 10 * time.Minute, standstill: 10 * time.Minute, limits: 1}
	}
	return pace{boot: 2 * time.Minute, standstill: 45 * time.Second, limits: 1}
}

func (qemu) command(ctx context.Context, h *host, j job, dir, console string) (*exec.Cmd, error) {
	cmdline, err := j.cmdline("/dev/vda", "/dev/vdb", "")
	if err != nil {
		return nil, err
	}
	accel := []string{"-accel", "tcg,thread=multi"}
	if j.counted {
		accel = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}
	}
	cpu := cpuModel
	if !j.xsave {
		cpu += withoutXSAVE
	}
	c := exec.CommandContext(ctx, "qemu-system-x86_64", append(accel, "-cpu", cpu, "-smp", strconv.Itoa(max(j.cpus, 1)), "-m", hostMemory,
		"-nodefaults", "-display", "none", "-no-reboot", "-kernel", h.kernel, "-initrd", h.initrd, "-append", cmdline,
		"-serial", "file:"+console, "-serial", "file:"+output, "-qmp", "unix:"+qmpSocket(dir)+",server=on,wait=off",
		"-drive", "file="+h.root+",format=raw,if=virtio,snapshot=on,cache=unsafe",
		"-drive", "file="+h.bundle+",format=raw,if=virtio,snapshot=on,cache=unsafe")...)
	c.Env = append(os.Environ(), "TMPDIR="+dir) // of the disks' changes
	return c, nil
}

func qmpSocket(dir string) string { return filepath.Join(dir, "qmp") }

// attend presses a key every now and then, for its interrupt.
func (qemu) attend(ctx context.Context, dir string) {
	var conn net.Conn
	for conn == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(nudge):
			conn, _ = net.Dial("unix", qmpSocket(dir))
		}
	}
	defer conn.Close()
	go io.Copy(io.Discard, conn)
	fmt.Fprintln(conn, `{"execute":"qmp_capabilities"}`)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(nudge):
			if _, err := fmt.Fprintln(conn, `{"execute":"send-key","arguments":{"keys":[{"type":"qcode","data":"shift"}]}}`); err != nil {
				return
			}
		}
	}
}
