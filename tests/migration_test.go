package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// receiver starts vmm receive, by a command in front of it if there is one, which takes all
// that a VM opens, and returns the key for the source.
func receiver(t *testing.T, name, address string, before ...string) (key string) {
	t.Helper()
	return receiverWith(t, name, address, before, "--trust")
}

// receiverWith is receiver with flags.
func receiverWith(t *testing.T, name, address string, before []string, flags ...string) (key string) {
	t.Helper()
	keyFile := filepath.Join(t.TempDir(), "key")
	argv := append(before, vmmPath, "receive", "--console", "none", "--name", name, "--key-file", keyFile)
	argv = append(append(argv, flags...), address)
	c := exec.Command(argv[0], argv[1:]...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	path, isUnix := strings.CutPrefix(address, "unix:")
	if !isUnix {
		path = keyFile
	}
	for range 3000 { // other tests may keep the machine busy
		if _, err := os.Stat(path); err == nil {
			b, _ := os.ReadFile(keyFile)
			if key = strings.TrimSpace(string(b)); key != "" || isUnix {
				return key
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("vmm receive %s does not listen", address)
	return ""
}

// answers waits until a VM's guest answers.
func answers(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(patience(t, time.Minute)); ; time.Sleep(50 * time.Millisecond) {
		if _, status := vmm(t, "exec", name, "true"); status == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("VM %s does not answer", name)
		}
	}
}

// TestMigration moves a guest under load from process to process: nothing in it
// notices, and what fails leaves it where it is.
func TestMigration(t *testing.T) {
	needKVM(t)
	dir := runtimeDirFor(t)
	startLoad(t, "moving")
	defer gone(t, "moving", "moving-0", "moving-1", "never")
	r := progresses(t, "moving", report{})

	wantRefusal(t, []string{"migrate", "moving", "unix:" + dir + "/nobody"}, 125, "no such file")
	key := receiver(t, "never", "tcp://127.0.0.1:45871")
	wrong := "A" + key[1:]
	if wrong == key {
		wrong = "B" + key[1:]
	}
	wantRefusal(t, []string{"migrate", "--key", wrong, "moving", "tcp://127.0.0.1:45871"}, 125, "the key is of")
	wrong = key[:len(key)-1] + "A"
	if wrong == key {
		wrong = key[:len(key)-1] + "Q"
	}
	wantRefusal(t, []string{"migrate", "--key", wrong, "moving", "tcp://127.0.0.1:45871"}, 125, "the key is another one's")
	// Over TCP it is another's word what the VM opens there.
	key = receiverWith(t, "never", "tcp://127.0.0.1:45870", nil)
	if out, status := vmm(t, "migrate", "--key", key, "moving", "tcp://127.0.0.1:45870"); status != 125 || !strings.Contains(out, "was not saved by you on this host") || !strings.Contains(out, "load.qcow2") {
		t.Errorf("to who trusts nobody: status %d\n%s", status, out)
	}
	// A name that is taken there, which shows when all is sent.
	receiver(t, "moving", "unix:"+dir+"/taken")
	wantRefusal(t, []string{"migrate", "moving", "unix:" + dir + "/taken"}, 125, "running already")
	// An interrupt on the way.
	if _, err := exec.LookPath("timeout"); err == nil {
		receiver(t, "never", "unix:"+dir+"/slow")
		exec.Command("timeout", "-s", "INT", "0.02", vmmPath, "migrate", "moving", "unix:"+dir+"/slow").Run()
	}
	if _, status := vmm(t, "exec", "moving", "true"); status != 0 {
		t.Fatal("the VM is not where it was")
	}
	r = progresses(t, "moving", r)

	from := "moving"
	for i := range rounds(6) {
		to := fmt.Sprint("moving-", i%2)
		address := fmt.Sprintf("unix:%s/m%d", dir, i)
		args := []string{"migrate"}
		if i%2 == 1 {
			address = fmt.Sprintf("tcp://127.0.0.1:%d", 45872+i)
			args = append(args, "--key", receiver(t, to, address))
		} else {
			receiver(t, to, address)
		}
		ok(t, append(args, "--downtime", patience(t, 2*time.Second).String(), from, address)...)
		answers(t, to)
		now := look(t, to)
		if now["cpu"] < r["cpu"] || now["blocks"] < r["blocks"] {
			t.Errorf("round %d: %v after %v", i, now, r)
		}
		r = progresses(t, to, now)
		clockIsRight(t, to)
		if _, status := vmm(t, "inspect", from); status == 0 {
			t.Errorf("round %d: VM %s is still there", i, from)
		}
		from = to
	}
}

// TestMigrationBetweenNamespaces moves a guest from one network namespace to
// another, as between two hosts.
func TestMigrationBetweenNamespaces(t *testing.T) {
	needKVM(t)
	needTools(t, "ip")
	runtimeDirFor(t)
	a, b := fmt.Sprint("vmma", os.Getpid()), fmt.Sprint("vmmb", os.Getpid())
	for _, args := range [][]string{
		{"netns", "add", a}, {"netns", "add", b},
		{"-n", a, "link", "add", "m0", "type", "veth", "peer", "name", "m0", "netns", b},
		{"-n", a, "addr", "add", "192.0.2.1/24", "dev", "m0"}, {"-n", b, "addr", "add", "192.0.2.2/24", "dev", "m0"},
		{"-n", a, "link", "set", "m0", "up"}, {"-n", b, "link", "set", "m0", "up"}, {"-n", a, "link", "set", "lo", "up"}, {"-n", b, "link", "set", "lo", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("network namespaces need root: ip %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
	defer exec.Command("ip", "netns", "del", a).Run()
	defer exec.Command("ip", "netns", "del", b).Run()
	defer gone(t, "here", "there")
	if out, err := exec.Command("ip", "netns", "exec", a, vmmPath, "run", "-d", "--name", "here", "-m", "96M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ok(t, "exec", "here", "sh", "-c", "echo kept > /tmp/file")
	key := receiver(t, "there", "tcp://192.0.2.2:4444", "ip", "netns", "exec", b)
	ok(t, "migrate", "--key", key, "here", "tcp://192.0.2.2:4444")
	answers(t, "there")
	if out := ok(t, "exec", "there", "cat", "/tmp/file"); out != "kept" {
		t.Errorf("the VM has %q", out)
	}
}
