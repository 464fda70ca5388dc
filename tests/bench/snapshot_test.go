package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmm/machine"
	"vmm/machine/snapshot"
)

// runVMM runs vmm with its VMs in a directory of their own.
func runVMM(t *testing.T, vmm string, args ...string) string {
	t.Helper()
	c := exec.Command(vmm, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("vmm %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// ownVMs gives VMs a directory of their own, with a short path.
func ownVMs(t *testing.T) {
	dir, err := os.MkdirTemp("", "vmm-b-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("XDG_RUNTIME_DIR", dir)
}

// withInput is timed with something at the serial port.
func withInput(t *testing.T, name string, args ...string) (time.Duration, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	// Again and again: what comes before the state is loaded may be lost by it.
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
				w.SetWriteDeadline(time.Now().Add(time.Millisecond))
				io.WriteString(w, "x")
			}
		}
	}()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	start := time.Now()
	c := exec.Command(name, args...)
	c.Stdin, c.Stdout, c.Stderr = r, out, out
	kill := time.AfterFunc(time.Minute, func() { c.Process.Kill() })
	defer kill.Stop()
	c.Run()
	d := time.Since(start)
	text, _ := os.ReadFile(out.Name())
	if c.ProcessState == nil || c.ProcessState.ExitCode() < 0 {
		t.Fatalf("%s: %v\n%s", name, c.ProcessState, text)
	}
	return d, string(text)
}

var setUp = regexp.MustCompile(`set up in ([0-9.]+[mµ]?s)`)

// TestCompareRestore compares the time from exec until the restored guest has done
// its next instructions, of which the last one ends it, for two sizes of memory and
// with QEMU.
func TestCompareRestore(t *testing.T) {
	vmm, payload := build(t, "LATER")
	ownVMs(t)
	dir := t.TempDir()
	for _, size := range []string{"1024", "8192"} {
		runVMM(t, vmm, "run", "-d", "--rm", "--engine", "kvm", "--name", "saved", "--kernel", payload, "--boot-protocol", "pvh", "-m", size, "--net", "none")
		runVMM(t, vmm, "snapshot", "--stop", "saved", filepath.Join(dir, size))
	}
	state := filepath.Join(dir, "qemu")
	args := append(qemuArgs(payload), "-m", "1024", "-serial", "stdio")
	save := exec.Command("qemu-system-x86_64", append(args, "-serial", "null", "-monitor", "unix:"+state+".sock,server=on,wait=off")...)
	if err := save.Start(); err != nil {
		t.Fatal(err)
	}
	defer save.Process.Kill()
	time.Sleep(time.Second)
	monitor := exec.Command("python3", "-c", `import socket,sys,time
s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(('migrate "exec:cat > %s"\n' % sys.argv[2]).encode()); time.sleep(2); s.sendall(b'quit\n'); time.sleep(0.5)`, state+".sock", state)
	if out, err := monitor.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var small, large, theirs, own, ownLarge []float64
	measure := func(size string, all, inside *[]float64) {
		d, out := withInput(t, vmm, "restore", "-v", "--engine", "kvm", filepath.Join(dir, size))
		*all = append(*all, d.Seconds()*1e3)
		m := setUp.FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("no time: %s", out)
		}
		in, _ := time.ParseDuration(m[1])
		*inside = append(*inside, in.Seconds()*1e3)
	}
	for range rounds {
		measure("1024", &small, &own)
		measure("8192", &large, &ownLarge)
		d, _ := withInput(t, "qemu-system-x86_64", append(args, "-incoming", "exec:cat "+state)...)
		theirs = append(theirs, d.Seconds()*1e3)
	}
	ratio(t, "restore, exec to exit", small, theirs, "ms")
	ratio(t, "restore of 8 GiB beside 1 GiB", large, small, "ms")
	ratio(t, "the same, set-up alone", ownLarge, own, "ms")
}

// TestCompareWarm compares a command's second run with its first.
func TestCompareWarm(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	vmm := buildVMM(t)
	ownVMs(t)
	t.Chdir("/")
	runVMM(t, vmm, "run", "--", "true") // makes the snapshot
	runVMM(t, vmm, "run", "--", "true") // notes what it uses of it
	var cold, warm []float64
	for range rounds {
		cold = append(cold, timed(t, vmm, "run", "--cold", "--", "true").Seconds()*1e3)
		warm = append(warm, timed(t, vmm, "run", "--", "true").Seconds()*1e3)
	}
	ratio(t, "vmm run -- true, warm beside cold", warm, cold, "ms")
}

// TestCompareSave compares saving memory with dd, both until it is on the disk.
func TestCompareSave(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	const size = 1 << 30
	mem, err := machine.NewMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	for i, ram := 0, mem.RAM()[0]; i < len(ram); i += 8 {
		ram[i], ram[i+1], ram[i+2] = byte(i>>3), byte(i>>11), 1
	}
	var ours, theirs []float64
	dir := t.TempDir()
	for i := range 5 {
		start := time.Now()
		w, err := snapshot.Create(filepath.Join(dir, fmt.Sprint("s", i)), false)
		if err == nil {
			err = w.Memory(mem, snapshot.MemoryOptions{})
		}
		if err == nil {
			err = w.Commit("", nil, &machine.State{})
		}
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, size/time.Since(start).Seconds()/(1<<20))
		os.RemoveAll(filepath.Join(dir, fmt.Sprint("s", i)))
		d := timed(t, "dd", "if=/dev/zero", "of="+filepath.Join(dir, "dd"), "bs=1M", "count=1024", "conv=fsync")
		theirs = append(theirs, size/d.Seconds()/(1<<20))
		os.Remove(filepath.Join(dir, "dd"))
	}
	ratio(t, "saving 1 GiB beside dd", ours, theirs, "MiB/s")
}

// TestCompareClones looks at what ten copies of a guest have of their own.
func TestCompareClones(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	vmm := buildVMM(t)
	ownVMs(t)
	dir := filepath.Join(t.TempDir(), "s")
	runVMM(t, vmm, "run", "-d", "--name", "origin", "-m", "512M")
	runVMM(t, vmm, "exec", "origin", "true")
	runVMM(t, vmm, "snapshot", "--stop", "origin", dir)
	defer exec.Command(vmm, "rm", "-f", "origin").Run()
	for i := range 10 {
		name := fmt.Sprint("clone-", i)
		runVMM(t, vmm, "restore", "-d", "--name", name, dir)
		defer exec.Command(vmm, "rm", "-f", name).Run()
		runVMM(t, vmm, "exec", name, "true")
	}
	var info []struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(runVMM(t, vmm, "inspect", "clone-9")), &info); err != nil {
		t.Fatal(err)
	}
	var stats struct {
		Private int64 `json:"private"`
	}
	if err := json.Unmarshal([]byte(runVMM(t, vmm, "stats", "--json", "clone-9")), &stats); err != nil {
		t.Fatal(err)
	}
	own := int64(0)
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", info[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(rollup), "\n") {
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[0], "Private_") {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			own += n << 10
		}
	}
	fmt.Printf("%-34s %d MiB its own, of which %d MiB its guest's\n", "the tenth copy", own>>20, stats.Private>>20)
}
