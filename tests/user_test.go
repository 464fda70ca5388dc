package tests

import (
	"archive/tar"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	guestimages "vmm/guest-images"
)

// isolated is a function of the scripts, that tells 1 if a VM has namespaces of its own, or the host allows none.
const isolated = `isolated() { if unshare -Urmp true 2> /dev/null; then "$1" inspect "$2" | grep -c 'namespaces (mnt ipc pid)'; else echo 1; fi; }
`

// userScript is what a user who is not root does with VMs.
const userScript = isolated + `set -e
"$1" run --cold -- id -un
"$1" run --rw . -- sh -c 'echo kept > made'
cat made
"$1" run -d --name mine --console none > /dev/null
"$1" exec mine uname -s
isolated "$1" mine
"$1" snapshot mine saved
"$1" kill mine > /dev/null
"$1" restore -d --name again saved > /dev/null
"$1" exec again uname -s
isolated "$1" again
"$1" stats --no-stream again | grep -c again
"$1" kill again > /dev/null
"$1" rm mine again > /dev/null
`

// TestNotRoot runs VMs as a user who has nothing but a /dev/kvm to open: in a mount
// namespace, where that is one for all.
func TestNotRoot(t *testing.T) {
	needKVM(t)
	out, err := asUser(t, ":", userScript)
	if want := "root\nkept\nLinux\n1\nLinux\n1\n1\n"; out != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

// imageScript is what a user who is not root does with images, of which the registry at REGISTRY
// has one and image.tar another.
const imageScript = isolated + `set -e
quietly() { "$@" > log 2>&1 || { cat log; exit 1; }; }
quietly "$1" pull REGISTRY/base:1
quietly "$1" load -i image.tar --name loaded:1
"$1" images -q | wc -l
"$1" run --cold --image REGISTRY/base:1 -- id -u
"$1" volume create data
quietly "$1" run -d --name mine --image loaded:1 -v data:/data -- sleep 100000
"$1" inspect mine | grep -c "no namespaces" # for files of others in the volume would be nobody's
"$1" exec mine -- stat -c '%u:%g %A %t %n' /app/device /app/tool
"$1" exec mine -- sh -c 'echo kept >/data/kept; echo new >/etc/new; busybox chown 7:8 /etc/new; busybox chmod 4755 /etc/new; busybox rm /etc/gone'
"$1" diff mine
quietly "$1" commit mine made:1
"$1" export -o all.tar mine
tar -tvf all.tar --numeric-owner etc/new app/device | cut -c 1-14
quietly "$1" rm -f mine
quietly "$1" run -d --name alone --image made:1 -- sleep 100000
isolated "$1" alone
"$1" exec alone -- sh -c 'cat /etc/new; stat -c "%u:%g" /etc/new'
quietly "$1" commit alone again:1
quietly "$1" rm -f alone
quietly "$1" rmi again:1
quietly "$1" tag made:1 REGISTRY/made:1
quietly "$1" push REGISTRY/made:1
"$1" save -o made.tar made:1
quietly "$1" rmi made:1 REGISTRY/made:1
quietly "$1" load -i made.tar
"$1" run --cold --image made:1 -v data:/data -- sh -c 'stat -c "%u:%g %A %n" /etc/new; cat /etc/new /data/kept; ls /etc/gone 2>&1; true'
"$1" history made:1 | wc -l
"$1" inspect-image made:1 | grep -c '"architecture": "amd64"'
quietly "$1" prune
quietly "$1" prune --all --force
"$1" images -q | wc -l
"$1" volume rm data
find "$HOME/.local/share/vmm/images" -type f ! -name '*lock' ! -name oci-layout ! -name index.json
`

// imageScriptSays is what it prints.
const imageScriptSays = `2
0
data
1
0:0 crw-r--r-- 1 /app/device
5:6 -rwsr-xr-x 0 /app/tool
A /data
C /etc
D /etc/gone
A /etc/new
crw-r--r-- 0/0
-rwsr-xr-x 7/8
1
new
7:8
7:8 -rwsr-xr-x /etc/new
new
kept
ls: /etc/gone: No such file or directory
4
1
0
data
`

// TestNotRootImages uses images as a user who is not root: files of others and devices are in
// them all the same.
func TestNotRootImages(t *testing.T) {
	needKVM(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	base := baseLayer(t)
	r, err := name.ParseReference(host + "/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, containerImage(t, v1.Config{Env: []string{"PATH=/bin"}}, base)); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, r, containerImage(t, v1.Config{Env: []string{"PATH=/bin"}}, base, imageLayer(t,
		layerFile{tar.Header{Name: "app/device", Typeflag: tar.TypeChar, Mode: 0o644, Devmajor: 1, Devminor: 3}, ""},
		layerFile{tar.Header{Name: "app/tool", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 5, Gid: 6}, "tool\n"}))); err != nil {
		t.Fatal(err)
	}
	out, err := asUser(t, "install -m 644 "+archive+` "$0/work"`, strings.ReplaceAll(imageScript, "REGISTRY", host))
	if err != nil || out != imageScriptSays {
		t.Errorf("%v\n%s\nwant\n%s", err, out, imageScriptSays)
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
