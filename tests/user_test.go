package tests

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	guestimages "vmm/guest-images"
)

// userScript is what a user who is not root does with VMs.
const userScript = `set -e
"$1" run --cold -- id -un
"$1" run --rw . -- sh -c 'echo kept > made'
cat made
"$1" run -d --name mine --console none > /dev/null
"$1" exec mine uname -s
if unshare -Urm true 2> /dev/null; then "$1" inspect mine | grep -c 'namespaces (mnt ipc)'; else echo 1; fi
"$1" snapshot mine saved
"$1" kill mine > /dev/null
"$1" restore -d --name again saved > /dev/null
"$1" exec again uname -s
"$1" stats --no-stream again | grep -c again
"$1" kill again > /dev/null
"$1" rm mine again > /dev/null
`

// TestNotRoot runs VMs as a user who has nothing but a /dev/kvm to open: in a mount
// namespace, where that is one for all.
func TestNotRoot(t *testing.T) {
	needKVM(t)
	out, err := asUser(t, ":", userScript)
	if want := "root\nkept\nLinux\n1\nLinux\n1\n"; out != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

// asUser runs a script as a user who is not root, in an empty directory, with vmm as $1;
// before that root runs another in the same process.
func asUser(t *testing.T, before, script string) (string, error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	for _, tool := range []string{"unshare", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s (util-linux)", tool)
		}
	}
	home, err := os.MkdirTemp("/var/tmp", "vmm-test-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	cache, err := guestimages.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	slim, ok := guestimages.HasSlimKernel()
	if !ok {
		t.Skip("there is no slim kernel (vmm setup)")
	}
	own := filepath.Join(home, ".cache", "vmm")
	must(t, "mkdir", "-p", own, filepath.Join(home, "run"), filepath.Join(home, "work"))
	must(t, "cp", "-r", filepath.Dir(slim), filepath.Join(cache, "busybox"), own)
	must(t, "cp", vmmPath, filepath.Join(home, "vmm"))
	must(t, "chown", "-R", "65533:65533", home)
	if err := errors.Join(os.Chmod(home, 0o755), os.Chmod(filepath.Join(home, "run"), 0o700)); err != nil {
		t.Fatal(err)
	}
	device := before + ` && mknod "$0/kvm" c 10 232 && chmod 666 "$0/kvm" && mount --bind "$0/kvm" /dev/kvm && cd "$0/work" && ` +
		`exec setpriv --reuid 65533 --regid 65533 --clear-groups env -i PATH="$PATH" HOME="$0" XDG_RUNTIME_DIR="$0/run" sh -c "$1" sh "$0/vmm"`
	c := exec.Command("unshare", "--mount", "sh", "-c", device, home, script)
	kill := time.AfterFunc(10*time.Minute, func() { c.Process.Kill() })
	defer kill.Stop()
	out, err := c.CombinedOutput()
	if strings.Contains(string(out), "unshare failed") || strings.Contains(string(out), "mknod") {
		t.Skipf("a mount namespace with a device of its own cannot be had here: %s", out)
	}
	return string(out), err
}

// TestGDBOwner connects to the port of --gdb, as who has started the VM and as another.
func TestGDBOwner(t *testing.T) {
	needKVM(t)
	needTools(t, "setpriv", "bash")
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	g := startGuest(t, "run", "--kernel", "default", "-m", "256M", "--net", "none", "--timeout", bootLimit, "--gdb", "0,wait", "--console", "none")
	const said = "waiting for gdb at "
	if !g.until(said) {
		t.Fatalf("--gdb:\n%s", g.out.String())
	}
	defer g.cmd.Process.Kill()
	_, address, _ := strings.Cut(strings.TrimSpace(g.out.String()), said)
	host, port, _ := strings.Cut(address, ":")
	ask := "exec 3<>/dev/tcp/" + host + "/" + port + "; printf '+$?#3f' >&3; timeout 60 head -c 3 <&3" // why it stands still
	if out, err := exec.Command("setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups", "bash", "-c", ask).CombinedOutput(); strings.Contains(string(out), "$") {
		t.Errorf("another user was answered: %s, %v", out, err)
	}
	if !g.until("a connection of user 65533 was refused") {
		t.Errorf("nothing was said of it:\n%s", g.out.String())
	}
	if out, err := exec.Command("bash", "-c", ask).CombinedOutput(); !strings.HasPrefix(string(out), "+$") {
		t.Errorf("the user who runs the VM was not answered: %s, %v", out, err)
	}
}
