package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os/exec"
	"time"
)

// emulator is a program that emulates a PC whose CPU has hardware virtualization.
type emulator interface {
	// module is what the host has of it: the name of KVM's part for it.
	module() string
	// tools are the programs that it needs.
	tools() []string
	// pace is how fast it is for a job.
	pace(j job) pace
	// covers reports whether a test runs there if none is named.
	covers(t *hostTest) bool
	// skips is a regular expression of what it leaves out of a package's tests.
	skips(t *hostTest) string
	// command starts a host for a job, with an empty directory for what belongs to it.
	// The host's first serial port is the file console, the second the file output.
	command(ctx context.Context, h *host, j job, dir, console string) (*exec.Cmd, error)
	// attend looks after the host of a directory until ctx is done.
	attend(ctx context.Context, dir string)
}

// emulators are those that there are, by what -emulator names.
var emulators = map[string]emulator{"qemu": qemu{}, "bochs": bochs{}}

// output is a pipe that an emulator has as its descriptor 3.
const output = "/dev/fd/3"

// pace is how fast an emulator is, in times of this machine.
type pace struct {
	boot       time.Duration // to the host's first word, at most
	standstill time.Duration // how long a host may say nothing; it does so every five seconds of its own
	limits     int           // by what a job's limit, which is for qemu, is multiplied
}

// epilogue shows what the host's kernel complains of that a guest has done.
const epilogue = "\nstatus=$?\ndmesg | grep -i unhandled | sed 's/^/" + complaint + "/'\nexit $status"

// complaint begins such a line.
const complaint = "host: "

// maxCmdline is how many bytes Linux takes of a command line.
const maxCmdline = 2047

// cmdline is the command line of a host's kernel that does a job: root and tests are
// its disks, and more is what else the kernel needs.
func (j job) cmdline(root, tests, more string) (string, error) {
	line := fmt.Sprintf("console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable %s vmm.root=%s vmm.tests=%s vmm.job=%s",
		more, root, tests, base64.StdEncoding.EncodeToString([]byte("("+j.script+"\n)"+epilogue)))
	if len(line) > maxCmdline {
		return "", fmt.Errorf("a command of %d bytes is too long for the kernel's command line", len(j.script))
	}
	return line, nil
}
