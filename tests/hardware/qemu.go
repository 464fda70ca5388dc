package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuModel is an AMD CPU with SVM and nested paging, as far as TCG emulates one.
// XSAVE is left out, unless a job's guests do not see it: TCG does not intercept a guest's XSETBV,
// so that KVM would lose the guest's XCR0.
const (
	cpuModel     = "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save"
	withoutXSAVE = ",-xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-fma,-f16c"
)

const (
	hostMemory = "6G"
	// standstill is how long a host may say nothing; it does so every five seconds.
	standstill = 45 * time.Second
	// countedStandstill is that of one with a clock that counts instructions: five seconds
	// are 5e9 of them.
	countedStandstill = 10 * time.Minute
	// bootTime is how long it may take to its first word.
	bootTime = 2 * time.Minute
	// nudge is how often a host gets an interrupt: TCG loses one of its APIC's now
	// and then, and any other brings it back.
	nudge = time.Second
	// hostTries is how many hosts a job gets that stand still.
	hostTries = 3
)

// epilogue shows what the host's kernel complains of that a guest has done.
const epilogue = "\nstatus=$?\ndmesg | grep -i unhandled | sed 's/^/" + complaint + "/'\nexit $status"

// complaint begins such a line.
const complaint = "host: "

// errStill is the error for a host that stands still.
var errStill = errors.New("the host stood still")

// runJob runs a job on a host of its own, and on another one if that stood still.
func (h *host) runJob(ctx context.Context, j job, logs string, r *reporter) {
	for try := 1; ; try++ {
		start := time.Now()
		var out strings.Builder
		status, err := h.start(ctx, j, filepath.Join(logs, fmt.Sprintf("%s-%d.console", j.name, try)), r.follow(&out))
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errStill) && try < hostTries {
			r.note("%s: %v after %.0f s: once more on another", j.name, err, time.Since(start).Seconds())
			continue
		}
		r.done(j.name, out.String(), status, err, time.Since(start))
		return
	}
}

// start runs a host until its job is done, and writes to out what that says. It
// returns the exit status of the job.
func (h *host) start(ctx context.Context, j job, console string, out io.Writer) (status int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, j.limit+bootTime, fmt.Errorf("not done after %v", j.limit+bootTime))
	defer cancel()
	dir, err := os.MkdirTemp("", "vmm-svm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	qmp := filepath.Join(dir, "qmp")
	accel, silence := []string{"-accel", "tcg,thread=multi"}, standstill
	if j.counted {
		accel, silence = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}, countedStandstill
	}
	cpu := cpuModel
	if !j.xsave {
		cpu += withoutXSAVE
	}
	c := exec.CommandContext(ctx, "qemu-system-x86_64", append(accel, "-cpu", cpu, "-smp", strconv.Itoa(max(j.cpus, 1)), "-m", hostMemory,
		"-nodefaults", "-display", "none", "-no-reboot", "-kernel", h.kernel, "-initrd", h.initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable vmm.job="+base64.StdEncoding.EncodeToString([]byte("("+j.script+"\n)"+epilogue)),
		"-serial", "file:"+console, "-serial", "stdio", "-qmp", "unix:"+qmp+",server=on,wait=off",
		"-drive", "file="+h.root+",format=raw,if=virtio,snapshot=on,cache=unsafe",
		"-drive", "file="+h.bundle+",format=raw,if=virtio,snapshot=on,cache=unsafe")...)
	c.Env = append(os.Environ(), "TMPDIR="+dir) // of the disks' changes
	var complaints strings.Builder
	c.Stderr = &complaints
	pipe, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	go keepAwake(ctx, qmp)
	status, err = watch(pipe, out, silence, cancel)
	if wait := c.Wait(); err == nil && status < 0 {
		err = fmt.Errorf("the host ended early: %w: %s", errors.Join(wait, context.Cause(ctx)), complaints.String())
	}
	return status, err
}

// watch copies what the job says until it ends; status is -1 if it never says so.
// A host that says nothing for longest is ended with stop.
func watch(from io.Reader, out io.Writer, longest time.Duration, stop func()) (status int, err error) {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for r := bufio.NewReader(from); ; {
			line, err := r.ReadString('\n')
			if line != "" {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	status = -1
	silence := time.NewTimer(max(bootTime, longest))
	defer silence.Stop()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return status, err
			}
			silence.Reset(longest)
			before, word, control := strings.Cut(line, "\x01")
			io.WriteString(out, before)
			if !control {
				continue
			}
			if s, ok := strings.CutPrefix(word, "end "); ok {
				status, err = strconv.Atoi(strings.TrimSpace(s))
			}
		case <-silence.C:
			if status < 0 {
				err = errStill
			}
			stop()
			for range lines {
			}
			return status, err
		}
	}
}

// keepAwake presses a key every now and then, for its interrupt.
func keepAwake(ctx context.Context, qmp string) {
	var conn net.Conn
	for conn == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(nudge):
			conn, _ = net.Dial("unix", qmp)
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
