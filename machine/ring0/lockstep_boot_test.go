package ring0_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"vmm/bootloader"
	guestimages "vmm/guest-images"
	"vmm/machine"
	"vmm/machine/ring0"
)

// bootScript is the guest's init: programs that say what can be known before. The kernel says
// nothing meanwhile, which could stand in the middle of a line of theirs.
const bootScript = `#!/bin/busybox sh
set -e
busybox dmesg -n 1
busybox md5sum /bin/busybox
busybox gzip -c /bin/busybox | busybox gunzip | busybox md5sum
busybox awk 'BEGIN { for (i = 1; i < 3000; i++) { s += 1 / i; a[i % 97] += i }; print "sum", s, length(a) }'
trap 'echo signal' USR1
busybox sh -c "kill -USR1 $$"
`

// bootEnd is how it ends.
const bootEnd = `echo ended
busybox poweroff -f
`

// wholePrograms are more programs, which take minutes: code that changes itself, and one that
// is large and written in Go.
const wholePrograms = `busybox mount -t proc proc /proc
/bin/selfmodify
/bin/gofmt /source.go | busybox md5sum
`

// TestLockstepBoot boots kernels to programs and to their end, and wants what translations do
// to be what the interpreter does from the same state. With VMM_TEST_STOCK it compares all that
// is translated, also of Debian's kernel.
func TestLockstepBoot(t *testing.T) {
	b := &guestimages.Builder{Log: os.Stderr}
	busybox, err := b.Busybox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slim, err := b.SlimKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files := []cpio.Record{cpio.Directory("proc", 0o755), cpio.Directory("tmp", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3), executable("bin/busybox", busybox)}
	sum := fmt.Sprintf("%x  ", md5.Sum(busybox))
	wants := []string{sum + "/bin/busybox", sum + "-", "sum 8.58342 97", "signal", "ended"}
	if os.Getenv("VMM_TEST_STOCK") == "" {
		boot(t, slim.Image, append(files, executable("init", []byte(bootScript+bootEnd))), 100, wants)
		return
	}
	stock, err := b.StockKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	more, want := wholeFiles(t)
	files = append(files, executable("init", []byte(bootScript+wholePrograms+bootEnd)))
	files, wants = append(files, more...), append(wants, want...)
	t.Run("slim", func(t *testing.T) { boot(t, slim.Image, files, 1, wants) })
	t.Run("stock", func(t *testing.T) { boot(t, stock.Image, files, 1, wants) })
}

// executable is a program in an initial RAM disk.
func executable(name string, content []byte) cpio.Record {
	return cpio.StaticRecord(content, cpio.Info{Name: name, Mode: cpio.S_IFREG | 0o755})
}

// wholeFiles returns the files of wholePrograms, and what they are to say.
func wholeFiles(t *testing.T) (files []cpio.Record, wants []string) {
	program := filepath.Join(t.TempDir(), "selfmodify")
	if out, err := exec.Command("gcc", "-O1", "-fwrapv", "-pthread", "-static", "-w", "-o", program, "../../tests/guestprograms/selfmodify.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	gofmt, err := exec.LookPath("gofmt")
	if err != nil {
		t.Fatal(err)
	}
	const source = "lockstep_program_test.go"
	formatted, err := exec.Command(gofmt, source).Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"bin/selfmodify": program, "bin/gofmt": gofmt, "source.go": source} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, executable(name, content))
	}
	return files, []string{"moves on ok", fmt.Sprintf("%x  -", md5.Sum(formatted))}
}

// boot boots a kernel with one of every so many runs of translations compared.
func boot(t *testing.T, image string, files []cpio.Record, every int, wants []string) {
	kernel, err := bootloader.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := guestimages.Archive(files...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l := &ring0.Lockstep{Every: every, Differ: stop}
	defer l.Start()()
	var console bytes.Buffer
	m, err := machine.New(machine.Config{Kernel: kernel, Initrd: initrd, Memory: 256 << 20, Engine: machine.SoftwareEngine, Console: &console})
	if err != nil {
		t.Fatal(err)
	}
	end, err := m.Run(ctx)
	if err != nil || end.End != machine.EndPowerOff {
		t.Errorf("the guest ended by %v, %s, %v", end.End, end.Detail, err)
	}
	said := strings.Split(strings.ReplaceAll(console.String(), "\r", ""), "\n")
	for _, want := range wants {
		if !strings.Contains("\n"+strings.Join(said, "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("the guest does not say %q", want)
		}
	}
	if l.Difference != nil {
		t.Error(l.Difference)
	}
	if l.Compared < 100 || l.Undefined > l.Compared/100 || l.Calls == 0 || l.Vector == 0 {
		t.Error("too little could be compared")
	}
	t.Logf("%d of %d runs of translations compared, but for %d with undefined flags: %d instructions, at most %d in a run, of which %d jumps, %d SYSCALL or SYSRET, %d vector; %d pages written",
		l.Compared, l.Runs, l.Undefined, l.Instructions, l.Longest, l.Jumps, l.Calls, l.Vector, l.Pages)
	if t.Failed() {
		t.Logf("%s", console.String())
	}
}
