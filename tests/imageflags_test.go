package tests

import (
	"archive/tar"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ownImages gives a test VMs, snapshots and images of its own, and returns where its data are.
func ownImages(t *testing.T) (data string) {
	t.Helper()
	runtimeDirFor(t)
	ownCache(t)
	data = t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	return data
}

// loadImage makes an image known to vmm.
func loadImage(t *testing.T, ref string, image v1.Image) {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, image); err != nil {
		t.Fatal(err)
	}
	if out, status := vmm(t, "load", "-i", archive); status != 0 {
		t.Fatalf("load: status %d\n%s", status, out)
	}
}

// waitLog waits until the command of a VM in the background has said something.
func waitLog(t *testing.T, name, want string) {
	t.Helper()
	out := ""
	for range 600 {
		if out, _ = vmm(t, "logs", name); strings.Contains(out, want) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s did not say %q, but\n%s", name, want, out)
}

// TestImageFlags has one VM with what an image, and flags for images, say of it.
func TestImageFlags(t *testing.T) {
	needKVM(t)
	ownImages(t)
	loadImage(t, "flags:1", containerImage(t, v1.Config{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/vol": {}}, Labels: map[string]string{"a": "image", "b": "image"}, StopSignal: "SIGUSR1", Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "test ! -e /vol/ill"}, Interval: 200 * time.Millisecond, Retries: 2},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}}, baseLayer(t),
		imageLayer(t, layerFile{tar.Header{Name: "vol/there", Typeflag: tar.TypeReg, Mode: 0o644}, ""})))
	run := []string{"run", "-d", "--name", "flagged", "--image", "flags:1", "--read-only", "--hostname", "box.example", "--label", "b=flag", "-P", "--"}
	if out, status := vmm(t, append(run, "/bin/sleep", "100000")...); status != 0 {
		t.Fatalf("run -d: status %d\n%s", status, out)
	}
	defer vmm(t, "rm", "-f", "flagged")
	for _, c := range []struct{ name, script, want string }{
		{"hostname", "hostname; grep -c box.example /etc/hosts", "box.example\n1\n"},
		{"volume of the image", "ls /vol; echo new >/vol/new && cat /vol/new; echo no 2>/dev/null >/new || echo protected", "there\nnew\nprotected\n"},
	} {
		if out, status := vmm(t, "exec", "flagged", "/bin/sh", "-c", c.script); status != 0 || out != c.want {
			t.Errorf("%s: status %d, %q, want %q", c.name, status, out, c.want)
		}
	}
	for filter, want := range map[string]string{"label=a=image": "flagged\n", "label=b=flag": "flagged\n", "label=b=image": "", "label=c": ""} {
		if out, status := vmm(t, "ps", "-q", "--filter", filter); status != 0 || out != want {
			t.Errorf("ps --filter %s: status %d, %q", filter, status, out)
		}
	}
	for _, c := range []struct{ do, want string }{{"true", "(healthy)"}, {"touch /vol/ill", "(unhealthy)"}, {"rm /vol/ill", "(healthy)"}} {
		if out, status := vmm(t, "exec", "flagged", "/bin/sh", "-c", "/bin/busybox "+c.do); status != 0 {
			t.Errorf("exec: status %d\n%s", status, out)
		}
		out := ""
		for range 300 {
			if out, _ = vmm(t, "ps"); strings.Contains(out, c.want) {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if !strings.Contains(out, c.want) {
			t.Errorf("after %s, it is not %s:\n%s", c.do, c.want, out)
		}
	}
	if out, status := vmm(t, "port", "ls", "flagged"); status != 0 || !strings.Contains(out, "80/tcp") || !strings.Contains(out, "53/udp") {
		t.Errorf("port ls: status %d\n%s", status, out)
	}
	// Its command gets the image's signal to stop, and not SIGTERM, which it does not mind.
	if out, status := vmm(t, "run", "-d", "--name", "stopped", "--image", "flags:1", "--stop-timeout", "100", "--", "/bin/sh", "-c",
		"trap '' TERM; trap 'exit 5' USR1; echo trapped; while :; do sleep 0.1; done"); status != 0 {
		t.Fatalf("run -d: status %d\n%s", status, out)
	}
	defer vmm(t, "rm", "-f", "stopped")
	waitLog(t, "stopped", "trapped")
	if out, status := vmm(t, "stop", "stopped"); status != 0 {
		t.Errorf("stop: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "ps", "-a"); status != 0 || !strings.Contains(out, "exited (5)") {
		t.Errorf("ps -a: status %d\n%s", status, out)
	}
	wantRefusals(t, []refusal{
		{"run --hostname a_b -- true", 2, "only letters"},
		{"run --health-interval 1s -- true", 2, "there is no health check"},
		{"run --health-cmd true --no-agent", 2, "needs the agent"},
		{"run --label =x -- true", 2, "KEY=VALUE"},
		{"run -P -- true", 2, "goes with --image"},
		{"run --stop-signal NONE -- true", 2, "no such signal"},
		{"run --stop-timeout -1 -- true", 2, "negative"},
		{"run --stop-signal TERM", 2, "for a command"},
		{"ps --filter name=x", 2, "label=KEY"},
	})
}

// TestRootSize: what is written to a disk is there for the next VM of the name, however the last one ended, until it is
// removed; and without a name it leaves nothing.
func TestRootSize(t *testing.T) {
	needKVM(t)
	data := ownImages(t)
	config := v1.Config{Env: []string{"PATH=/bin"}}
	loadImage(t, "kept:1", containerImage(t, config, baseLayer(t)))
	loadImage(t, "kept:2", containerImage(t, config, baseLayer(t), imageLayer(t, layerFile{tar.Header{Name: "other", Typeflag: tar.TypeReg, Mode: 0o644}, ""})))
	run := []string{"run", "--image", "kept:1", "--root-size", "1G"}
	const count = `cat /n 2>/dev/null; echo x >>/n`
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"the first", append(slices.Clone(run), "--name", "kept", "--", "/bin/sh", "-c", count+"; /bin/busybox df -m / | /bin/busybox awk 'END {print ($2 > 1000)}'"), "1\n"},
		{"the second", append(slices.Clone(run), "--name", "kept", "--", "/bin/sh", "-c", count), "x\n"},
		{"of no name", append(slices.Clone(run), "--", "/bin/sh", "-c", count), ""},
		{"in the background", append(slices.Clone(run), "--name", "kept", "-d", "--", "/bin/sh", "-c", count+"; /bin/busybox sync; echo synced; exec /bin/sleep 100000"), "kept\n"},
	} {
		if out, status := vmm(t, c.args...); status != 0 || out != c.want {
			t.Errorf("%s: status %d, %q, want %q", c.name, status, out, c.want)
		}
	}
	defer vmm(t, "rm", "-f", "kept")
	waitLog(t, "kept", "x\nx\nsynced\n")
	if out, status := vmm(t, "kill", "kept"); status != 0 {
		t.Errorf("kill: status %d\n%s", status, out)
	}
	// Its journal has what a machine that was cut off has left.
	if out, status := vmm(t, append(slices.Clone(run), "--name", "kept", "--", "/bin/sh", "-c", count)...); status != 0 || out != "x\nx\nx\n" {
		t.Errorf("in the place of the one that was killed: status %d, %q", status, out)
	}
	wantRefusals(t, []refusal{
		{"run --image kept:2 --root-size 1G --name kept -- /bin/true", 125, "belongs to another image, sha256:"},
		{"run --image kept:1 --root-size 2T -- /bin/true", 125, "larger than 1024 GiB"},
		{"run --image kept:1 --root-size 0 -- /bin/true", 2, "some room"},
		{"run --image kept:1 --root-size 1G --read-only -- /bin/true", 2, "nothing is written"},
		{"run --root-size 1G -- true", 2, "goes with --image"},
	})
	if out, status := vmm(t, "rm", "kept"); status != 0 {
		t.Errorf("rm: status %d\n%s", status, out)
	}
	if left, err := os.ReadDir(filepath.Join(data, "vmm", "roots")); err != nil || len(left) != 0 {
		t.Errorf("%v, %v is left", left, err)
	}
}

// TestRootDir: what is written is in a directory of the host, for one VM of one image at a time, and can be committed.
func TestRootDir(t *testing.T) {
	needKVM(t)
	if os.Getuid() != 0 {
		t.Skip("only root can have such a directory")
	}
	ownImages(t)
	config := v1.Config{Env: []string{"PATH=/bin"}}
	old := imageLayer(t, layerFile{tar.Header{Name: "old/a", Typeflag: tar.TypeReg, Mode: 0o644}, "a"}, layerFile{tar.Header{Name: "old/b", Typeflag: tar.TypeReg, Mode: 0o640}, "b"})
	loadImage(t, "dir:1", containerImage(t, config, baseLayer(t), old))
	loadImage(t, "dir:2", containerImage(t, config, baseLayer(t)))
	dir := filepath.Join(t.TempDir(), "written")
	run := []string{"run", "--image", "dir:1", "--root-dir", dir}
	const change = "echo new >/new; busybox chown 7:8 /new; busybox rm -r /old; busybox mkdir /old; echo c >/old/c"
	if out, status := vmm(t, append(run, "--", "/bin/sh", "-c", change)...); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "layer", "upper", "new")); err != nil || string(b) != "new\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	if out, status := vmm(t, append(run, "-d", "--name", "dir", "--", "/bin/sleep", "100000")...); status != 0 {
		t.Fatalf("run -d: status %d\n%s", status, out)
	}
	defer vmm(t, "rm", "-f", "dir")
	const see = "cat /new; busybox stat -c '%u %g' /new; cd /old; echo *"
	const seen = "new\n7 8\nc\n"
	if out, status := vmm(t, "exec", "dir", "/bin/sh", "-c", see); status != 0 || out != seen {
		t.Errorf("the next one: status %d, %q", status, out)
	}
	if out, status := vmm(t, "diff", "dir"); status != 0 || out != "A /new\nC /old\nD /old/a\nD /old/b\nA /old/c\n" {
		t.Errorf("diff: status %d\n%s", status, out)
	}
	wantRefusals(t, []refusal{
		{"run --image dir:1 --root-dir " + dir + " -- /bin/true", 125, "another VM has it"},
		{"run --image dir:2 --root-dir " + dir + " -- /bin/true", 125, "belongs to another image"},
		{"run --image dir:1 --root-dir " + t.TempDir() + "/.. -- /bin/true", 125, "is not empty"},
		{"run --image dir:1 --read-only --root-dir " + dir + " -- /bin/true", 2, "--read-only"},
		{"run --root-dir x -- true", 2, "goes with --image"},
	})
	if out, status := vmm(t, "commit", "dir", "dir:3"); status != 0 {
		t.Fatalf("commit: status %d\n%s", status, out)
	}
	if out, status := vmm(t, "run", "--image", "dir:3", "--", "/bin/sh", "-c", see); status != 0 || out != seen {
		t.Errorf("of what was committed: status %d, %q", status, out)
	}
}
