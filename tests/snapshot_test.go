package tests

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echoServer gives back what it is sent, until the test ends.
func echoServer(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, struct{ io.Reader }{c})
				c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// ok runs vmm and wants it to succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	out, status := vmm(t, args...)
	if status != 0 {
		t.Fatalf("vmm %s: status %d\n%s", strings.Join(args, " "), status, out)
	}
	return strings.TrimSpace(out)
}

// gone ends VMs, whatever state they are in; of a test that failed, it shows first
// what is known of them.
func gone(t *testing.T, names ...string) {
	for _, n := range names {
		if t.Failed() {
			for _, args := range [][]string{{"inspect", n}, {"logs", n}, {"logs", "--console", n}} {
				out, _ := vmm(t, args...)
				t.Logf("vmm %s:\n%s", strings.Join(args, " "), out[max(0, len(out)-3000):])
			}
		}
		vmm(t, "rm", "-f", n)
	}
}

// report is the counters of a guest under load.
type report map[string]int64

var counter = regexp.MustCompile(`(\w+)=(\d+)`)

// look reads the report of a guest, in which nothing may have gone wrong.
func look(t *testing.T, name string) report {
	t.Helper()
	out := ok(t, "exec", name, "cat", "/tmp/report")
	r := report{}
	for _, m := range counter.FindAllStringSubmatch(out, -1) {
		r[m[1]], _ = strconv.ParseInt(m[2], 10, 64)
	}
	if bad, there := r["bad"]; !there || bad != 0 {
		t.Fatalf("VM %s: %s", name, out)
	}
	return r
}

// progresses wants all parts of the load to go on.
func progresses(t *testing.T, name string, since report) report {
	t.Helper()
	for end := time.Now().Add(patience(t, 2*time.Minute)); ; {
		r := look(t, name)
		stuck := ""
		for _, k := range []string{"cpu", "ticks", "blocks", "sent"} {
			if r[k] <= since[k] {
				stuck = k
			}
		}
		if stuck == "" {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("VM %s: %s does not go on: %v, before %v", name, stuck, r, since)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// clockIsRight compares a guest's clock with the host's.
func clockIsRight(t *testing.T, name string) {
	t.Helper()
	asked := time.Now()
	if out := ok(t, "exec", name, "date", "+%s"); !isTimeSince(asked, out) {
		t.Errorf("VM %s: the clock shows %s", name, out)
	}
}

// isTimeSince reports whether a guest that was asked then has shown its time rightly,
// in seconds since 1970. However long its answer took, it is not from outside of that.
func isTimeSince(asked time.Time, shown string) bool {
	const off = 30 * time.Second
	n, err := strconv.ParseInt(shown, 10, 64)
	at := time.Unix(n, 0)
	return err == nil && at.After(asked.Add(-off)) && at.Before(time.Now().Add(off))
}

// startLoad runs a VM in the background with all kinds of load in it.
func startLoad(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() { gone(t, name) })
	disk := filepath.Join(t.TempDir(), "load.qcow2")
	ok(t, "image", "create", "-s", "64M", disk)
	port := echoServer(t)
	ok(t, "run", "-d", "--name", name, "-c", "2", "-m", "256M", "--kernel", "default", "--disk", disk, "--net", "user,allow=host")
	ok(t, "cp", guestCheck, name+":/tmp/guestcheck")
	ok(t, "exec", name, "sh", "-c", fmt.Sprintf("/tmp/guestcheck endure=/tmp/report disk=/dev/vda echo=10.0.2.2:%d slow=%.1f >/tmp/log 2>&1 &", port, slowness()))
	for end := time.Now().Add(patience(t, 20*time.Second)); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, status := vmm(t, "exec", name, "test", "-e", "/tmp/report"); status == 0 {
			return
		}
	}
	t.Fatal("the load does not start")
}

// rounds is how often a test repeats: VMM_TEST_ROUNDS, or few.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("VMM_TEST_ROUNDS")); err == nil {
		return n
	}
	return few
}

// TestSnapshotRounds saves a guest under load again and again, kills it and goes on
// from the snapshot: nothing in it notices.
func TestSnapshotRounds(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	dir := t.TempDir()
	startLoad(t, "load")
	defer gone(t, "load")
	r := progresses(t, "load", report{})
	snap := func(i int) string { return filepath.Join(dir, fmt.Sprint("s", i)) }
	for i := range rounds(9) {
		switch i % 3 {
		case 0: // all of it, and the VM goes on by itself
			ok(t, "snapshot", "load", snap(i))
			r = progresses(t, "load", r)
		case 1: // what has changed, then the end
			ok(t, "snapshot", "--diff", snap(i-1), "load", snap(i))
			r = look(t, "load")
			ok(t, "kill", "load")
			ok(t, "rm", "load")
			ok(t, "restore", "-d", snap(i))
			after := look(t, "load")
			if after["cpu"] > r["cpu"] && after["blocks"] > r["blocks"]+1000 {
				t.Errorf("restored at %v, which is after %v", after, r)
			}
			r = progresses(t, "load", after)
		case 2: // its process is killed
			ok(t, "snapshot", "--zstd", "load", snap(i))
			killVMM(t, "load")
			ok(t, "restore", "-d", snap(i))
			r = progresses(t, "load", look(t, "load"))
		}
		clockIsRight(t, "load")
	}
	if r["resets"] > int64(3*rounds(9)) {
		t.Errorf("connections were reset %d times", r["resets"])
	}
}

// killVMM kills a VM's process, as nothing good does.
func killVMM(t *testing.T, name string) {
	t.Helper()
	for _, line := range strings.Split(ok(t, "ps"), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			pid, _ := strconv.Atoi(f[1])
			unix.Kill(pid, unix.SIGKILL)
			for range 100 {
				if unix.Kill(pid, 0) != nil {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			ok(t, "rm", name)
			return
		}
	}
	t.Fatalf("no VM %s", name)
}

// TestClones copies a guest under load: each copy goes on, and is another one.
func TestClones(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	startLoad(t, "origin")
	r := progresses(t, "origin", report{})
	n := min(rounds(4), 50)
	names := []string{"origin"}
	for i := range n {
		names = append(names, fmt.Sprint("copy-", i))
	}
	defer gone(t, names...)
	args := append([]string{"clone"}, names[:1+n/2]...)
	ok(t, args...)
	snap := filepath.Join(t.TempDir(), "s")
	ok(t, "snapshot", "origin", snap)
	for _, name := range names[1+n/2:] {
		ok(t, "restore", "-d", "--name", name, snap)
	}
	seen := map[string]string{}
	for _, name := range names {
		out := ok(t, "exec", name, "sh", "-c", "hostname; cat /sys/class/net/eth0/address; head -c 16 /dev/urandom | md5sum")
		f := strings.Fields(out)
		if len(f) < 3 || f[0] != name {
			t.Errorf("VM %s calls itself %q", name, out)
			continue
		}
		for _, id := range f[:3] {
			if other := seen[id]; other != "" {
				t.Errorf("VMs %s and %s both have %s", name, other, id)
			}
			seen[id] = name
		}
	}
	for _, name := range names {
		progresses(t, name, r)
		clockIsRight(t, name)
	}
}

// TestBadSnapshots wants one line for what cannot be restored, and nothing lost.
func TestBadSnapshots(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.qcow2")
	ok(t, "image", "create", "-s", "8M", disk)
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	ok(t, "run", "-d", "--name", "vm", "-m", "96M", "--kernel", "default", "--disk", disk, "--share", shared+":/shared")
	defer gone(t, "vm")
	ok(t, "exec", "vm", "sh", "-c", "echo kept > /tmp/file")
	good := filepath.Join(dir, "good")
	ok(t, "snapshot", "vm", good)
	bad := filepath.Join(dir, "bad")
	fresh := func() {
		os.RemoveAll(bad)
		must(t, "cp", "-a", "--sparse=always", good, bad)
	}
	flip := func(name string, at int64) func() {
		return func() {
			f, err := os.OpenFile(filepath.Join(bad, name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if st, _ := f.Stat(); at < 0 {
				at += st.Size()
			}
			var b [1]byte
			f.ReadAt(b[:], at)
			b[0] ^= 1
			f.WriteAt(b[:], at)
		}
	}
	first, err := firstData(filepath.Join(good, "memory"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		do   func()
		want string
	}{
		{"memory bit", flip("memory", first+100), "memory does not match its checksum"},
		{"memory's last byte", flip("memory", -1), "memory does not match its checksum"},
		{"checksums", flip("memory.crc", 7), "memory.crc does not match its checksum"},
		{"state", flip("snapshot.json", 5000), "snapshot.json does not match its checksum"},
		{"state's checksum", flip("snapshot.json", -3), "snapshot.json does not match its checksum"},
		{"cut off", func() { os.Truncate(filepath.Join(bad, "memory"), 1<<20) }, "cut off"},
		{"state cut off", func() { os.Truncate(filepath.Join(bad, "snapshot.json"), 1000) }, "snapshot.json does not match its checksum"},
		{"no memory", func() { os.Remove(filepath.Join(bad, "memory")) }, "memory: no such file"},
		{"newer", func() {
			os.WriteFile(filepath.Join(bad, "snapshot.json"), []byte(`{"format":"vmm snapshot","version":99}`+"\n"), 0o600)
		}, "format 99"},
		{"foreign", func() {
			os.WriteFile(filepath.Join(bad, "snapshot.json"), []byte("\x89PNG\r\n"), 0o600)
		}, "damaged"},
		{"empty", func() { os.RemoveAll(bad); os.Mkdir(bad, 0o755) }, "there is no snapshot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fresh()
			c.do()
			wantRefusal(t, []string{"restore", "-d", "--name", "bad", bad}, 125, c.want)
		})
	}
	t.Run("disk gone", func(t *testing.T) {
		fresh()
		os.Rename(disk, disk+".away")
		wantRefusal(t, []string{"restore", "-d", "--name", "bad", bad}, 125, "disk.qcow2")
		os.Rename(disk+".away", disk)
	})
	t.Run("no room", func(t *testing.T) {
		small := smallFileSystem(t)
		wantRefusal(t, []string{"snapshot", "vm", filepath.Join(small, "s")}, 125, "no space left on device")
		if left, _ := os.ReadDir(small); len(left) > 1 { // lost+found
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("where a guest writes", func(t *testing.T) { // who could exchange what is signed
		wantRefusal(t, []string{"snapshot", "vm", filepath.Join(shared, "s")}, 125, "the guest can change")
		ok(t, "run", "-d", "--name", "other", "-m", "96M", "--kernel", "default", "--net", "none")
		defer gone(t, "other")
		wantRefusal(t, []string{"snapshot", "other", filepath.Join(shared, "s")}, 125, "the guest can change")
		if left, err := os.ReadDir(shared); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	t.Run("exists", func(t *testing.T) { wantRefusal(t, []string{"snapshot", "vm", good}, 125, "exists already") })
	t.Run("wrong parent", func(t *testing.T) {
		ok(t, "snapshot", "vm", filepath.Join(dir, "later"))
		wantRefusal(t, []string{"snapshot", "--diff", good, "vm", filepath.Join(dir, "d")}, 125, "without --diff")
	})
	// The VM and the good snapshot are as they were.
	if out := ok(t, "exec", "vm", "cat", "/tmp/file"); out != "kept" {
		t.Errorf("the VM has %q", out)
	}
	ok(t, "pause", "vm")
	wantRefusal(t, []string{"pause", "vm"}, 125, "paused already")
	if out := ok(t, "ps"); !strings.Contains(out, "paused (up ") {
		t.Errorf("ps: %s", out)
	}
	ok(t, "snapshot", "vm", filepath.Join(dir, "paused"))
	ok(t, "resume", "vm")
	ok(t, "restore", "-d", "--verify", "--name", "again", good)
	defer gone(t, "again")
	if out := ok(t, "exec", "again", "cat", "/tmp/file"); out != "kept" {
		t.Errorf("the restored VM has %q", out)
	}
}

// TestSnapshotDisks: memory and disk of a snapshot agree, whatever is written later.
func TestSnapshotDisks(t *testing.T) {
	needKVM(t)
	runtimeDirFor(t)
	t.Chdir(t.TempDir())
	defer gone(t, "disks", "back")
	ok(t, "image", "create", "-s", "32M", "d.qcow2")
	ok(t, "run", "-d", "--name", "disks", "-m", "96M", "--kernel", "default", "--disk", "d.qcow2")
	write := func(vm, word string) {
		ok(t, "exec", vm, "sh", "-c", "echo "+word+" >/tmp/word; echo "+word+" | dd of=/dev/vda conv=fsync 2>/dev/null")
	}
	write("disks", "one")
	ok(t, "snapshot", "disks", "pinned")
	write("disks", "two")
	ok(t, "snapshot", "--disk-copy", "disks", "copied")
	write("disks", "ten")
	ok(t, "snapshot", "disks", "again")
	write("disks", "six")
	if left, err := filepath.Glob("d*.qcow2"); err != nil || !slices.Equal(left, []string{"d-1-1.qcow2", "d-1.qcow2", "d.qcow2"}) {
		t.Errorf("there are the images %v, %v", left, err)
	}
	ok(t, "snapshot", "--stop", "disks", "stopped")
	ok(t, "rm", "disks")
	for _, c := range []struct{ dir, want string }{{"pinned", "one"}, {"copied", "two"}, {"again", "ten"}, {"stopped", "six"}} {
		for _, flags := range [][]string{nil, {"--disk-overlay", "overlay-" + c.dir}} {
			ok(t, append(append([]string{"restore", "-d", "--name", "back"}, flags...), c.dir)...)
			out := ok(t, "exec", "back", "sh", "-c", "echo 1 >/proc/sys/vm/drop_caches; cat /tmp/word; head -c 4 /dev/vda")
			if out != c.want+"\n"+c.want {
				t.Errorf("%s %v: %q, want %q", c.dir, flags, out, c.want)
			}
			write("back", "later")
			gone(t, "back")
		}
	}
}

// wantRefusal runs vmm and wants one line and a status.
func wantRefusal(t *testing.T, args []string, status int, want string) {
	t.Helper()
	out, got := vmm(t, args...)
	if got != status || !strings.Contains(out, want) || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("vmm %s: status %d, want %d; said %q, want %q", strings.Join(args, " "), got, status, out, want)
	}
}

// firstData is where a sparse file has its first data.
func firstData(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
}

// smallFileSystem mounts one of 8 MiB, or skips where that is not allowed.
func smallFileSystem(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	return dir
}

// TestWarmStart runs commands of one kind: the first boots, the others go on.
func TestWarmStart(t *testing.T) {
	needKVM(t)
	ownCache(t)
	runtimeDirFor(t)
	root := smallRoot(t)
	project := t.TempDir()
	run := func(args ...string) (out, errs string, status int) {
		return inDir(t, project, nil, append([]string{"run", "--timeout", bootLimit, "--root", root}, args...)...)
	}
	before := ok(t, "cache", "ls")
	script := "head -c 8 /proc/sys/kernel/random/uuid; busybox hostname; busybox date +%s; busybox cut -d. -f1 /proc/uptime"
	var uuids []string
	for i := range 4 {
		name := fmt.Sprint("warm", i%2)
		asked := time.Now()
		out, errs, status := run("--name", name, "--", "sh", "-c", script)
		f := strings.Fields(out)
		if status != 0 || len(f) != 3 || f[0][8:] != name {
			t.Fatalf("status %d: %q %q", status, out, errs)
		}
		for _, u := range uuids {
			if u == f[0][:8] {
				t.Errorf("run %d has the random numbers of another: %q", i, out)
			}
		}
		uuids = append(uuids, f[0][:8])
		if !isTimeSince(asked, f[1]) {
			t.Errorf("run %d: the clock shows %s", i, f[1])
		}
	}
	if after := ok(t, "cache", "ls"); strings.Count(after, "\n") != strings.Count(before, "\n")+1 {
		t.Errorf("the cache has\n%s\nbefore\n%s", after, before)
	}
	if out, _, status := run("--rw", ".", "--cwd", project, "--", "sh", "-c", "echo hi > file; exit 7"); status != 7 {
		t.Errorf("with a share: status %d, %q", status, out)
	}
	if out, _, status := run("--rw", ".", "--cwd", project, "--", "sh", "-c", "cat file; echo more >> file"); status != 0 || out != "hi\n" {
		t.Errorf("with a share, warm: status %d, %q", status, out)
	}
	// What the guest keeps of the host's files must not be older than they are.
	os.Remove(filepath.Join(root, "bin", "true"))
	os.WriteFile(filepath.Join(root, "bin", "true"), []byte("#!/bin/sh\necho another\n"), 0o755)
	if out, errs, status := run("--", "true"); status != 0 || out != "another\n" {
		t.Errorf("with another file: status %d, %q %q", status, out, errs)
	}
	if out, _, status := run("--cold", "--", "sh", "-c", "exit 3"); status != 3 {
		t.Errorf("--cold: status %d, %q", status, out)
	}
	damaged := 0
	cache, _ := os.UserCacheDir()
	memories, _ := filepath.Glob(filepath.Join(cache, "vmm", "warm", "*", "memory"))
	for _, m := range memories {
		if os.Truncate(m, 4096) == nil {
			damaged++
		}
	}
	if out, errs, status := run("--", "sh", "-c", "exit 4"); status != 4 || damaged == 0 {
		t.Errorf("with %d damaged snapshots: status %d, %q %q", damaged, status, out, errs)
	}
	ok(t, "cache", "prune", "--size", "0")
	if left := ok(t, "cache", "ls"); strings.Count(left, "\n") != 0 {
		t.Errorf("left after pruning: %s", left)
	}
}
