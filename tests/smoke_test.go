package tests

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vmm/machine"
)

// exitLine is a line of vmm run -v.
var exitLine = regexp.MustCompile(`vmm: +(\d+) exits: (io|mmio)\n`)

// maxExits bounds the exits to this process of a boot without devices but the
// platform's: 2600 where KVM interprets the guest's kernel, some hundreds fewer where the
// hardware runs it. A guest that scans 256 PCI buses makes 17,000.
const maxExits = 3200

// TestSmoke has something of everything, for a slow host: one guest with all kinds
// of devices, saved and restored, and one without. Where vmm takes another engine than the
// KVM that is there, that has its turn, too.
func TestSmoke(t *testing.T) {
	needKVM(t)
	needTools(t, "gdb")
	engines := []machine.Engine{machine.AutoEngine}
	if e, err := machine.AutoEngine.Choose(""); err != nil || e != machine.KVMEngine {
		engines = append(engines, machine.KVMEngine)
	}
	for _, e := range engines {
		t.Run(string(e), func(t *testing.T) { smoke(t, "--engine="+string(e)) })
	}
}

func smoke(t *testing.T, engine string) {
	runtimeDirFor(t)
	dir := t.TempDir()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "from the host") }))
	defer web.Close()
	disk, shared, snap := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "shared"), filepath.Join(dir, "snapshot")
	must(t, "mkdir", shared)
	if err := os.WriteFile(filepath.Join(shared, "in"), []byte("shared\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ok(t, "image", "create", "-s", "64M", disk)
	ok(t, "run", engine, "-d", "--name", "all", "-c", "2", "-m", "256M", "--kernel", "default", "--disk", disk,
		"--share", shared+":/src", "--net", "user,allow=host:"+web.URL[strings.LastIndex(web.URL, ":")+1:])
	defer gone(t, "all", "again")
	in := func(vm, script, want string) {
		t.Helper()
		if out, status := vmm(t, "exec", vm, "sh", "-c", script); status != 0 || out != want {
			t.Errorf("%s in %s: status %d, %q, want %q", script, vm, status, out, want)
		}
	}
	url := strings.Replace(web.URL, "127.0.0.1", "10.0.2.2", 1)
	in("all", "nproc", "2\n")
	in("all", "yes 0123456789abcdef | head -c 1000000 > /tmp/data; dd if=/tmp/data of=/dev/vda bs=4096 conv=fsync 2>/dev/null; md5sum < /tmp/data", "396f685a657a021d89f8156b534e6af6  -\n")
	in("all", "dd if=/dev/vda bs=1000000 count=1 iflag=direct,fullblock 2>/dev/null | cmp - /tmp/data && echo same", "same\n")
	in("all", "wget -q -O - "+url, "from the host")
	in("all", "cat /src/in; echo guest > /src/out", "shared\n")
	if b, err := os.ReadFile(filepath.Join(shared, "out")); string(b) != "guest\n" {
		t.Errorf("the guest's file in the share: %q, %v", b, err)
	}

	script := filepath.Join(dir, "gdb")
	if err := os.WriteFile(script, []byte("set pagination off\nset $before = $rip\nstepi\nprintf \"moved %d\\n\", $rip != $before\n"+
		"printf \"banner %s\\n\", (char *)&linux_banner\ndetach\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A CPU that is halted takes its step when something wakes it, which may be in half a minute.
	in("all", "for c in 1 2; do (while :; do usleep 20000; done) >/dev/null 2>&1 & echo $! >> /tmp/awake; taskset -p $c $! >/dev/null; done", "")
	if out, _ := vmm(t, "gdb", "all", "-batch", "-x", script); !strings.Contains(out, "moved 1") || !strings.Contains(out, "banner Linux version ") {
		t.Errorf("gdb:\n%s", out)
	}
	in("all", "kill $(cat /tmp/awake)", "")

	in("all", "(while :; do echo $((++i)) > /tmp/n; done) > /dev/null 2>&1 & echo $! > /tmp/pid", "")
	ok(t, "snapshot", "all", snap)
	ok(t, "kill", "all")
	ok(t, "restore", engine, "-d", "--name", "again", snap)
	in("again", "n=$(cat /tmp/n); while [ \"$(cat /tmp/n)\" = \"$n\" ]; do :; done; nproc; cat /src/in", "2\nshared\n")
	in("again", "dd if=/dev/vda bs=1000000 count=1 iflag=direct,fullblock 2>/dev/null | cmp - /tmp/data && wget -q -O - "+url, "from the host")
	clockIsRight(t, "again")
	gone(t, "again")

	// One CPU, and what a command costs.
	out, errs, status := inDir(t, dir, nil, "run", engine, "--cold", "-v", "-m", "256M", "--net", "none", "--", "sh", "-c", "nproc; cat shared/in; exit 3")
	if status != 3 || out != "1\nshared\n" {
		t.Errorf("a command: status %d, %q\n%s", status, out, errs)
	}
	exits := 0
	for _, m := range exitLine.FindAllStringSubmatch(errs, -1) {
		n, _ := strconv.Atoi(m[1])
		exits += n
	}
	if exits == 0 || exits > maxExits {
		t.Errorf("%d exits, want at most %d:\n%s", exits, maxExits, errs)
	}
	t.Logf("%d exits", exits)
	// Twice, so that the second goes on from the first's snapshot.
	for i := range 2 {
		out, errs, status := inDir(t, dir, nil, "run", engine, "-m", "256M", "--", "sh", "-c", fmt.Sprintf("cat shared/in; exit %d", i))
		if status != i || out != "shared\n" {
			t.Errorf("a warm command: status %d, %q\n%s", status, out, errs)
		}
	}
}
