package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	guestimages "vmm/guest-images"
	"vmm/vm"
)

// imageFile is the size of the file of the image, in MiB.
const imageFile = 100

// largeImage makes an image with a shell and a file of imageFile.
func largeImage(t *testing.T) string {
	t.Helper()
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("no mkfs.erofs: install erofs-utils")
	}
	root := t.TempDir()
	busybox, err := (&guestimages.Builder{Log: os.Stderr}).Busybox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"bin/sh": busybox, "large": bytes.Repeat([]byte("0123456789abcdef"), imageFile<<16)} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sh", filepath.Join(root, "bin/dd")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mkfs.erofs", image, root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return image
}

// imageGuest starts a VM of the image.
func imageGuest(t *testing.T, image string, device vm.ImageDevice) *vm.VM {
	t.Helper()
	v, err := vm.New(vm.Config{Root: &vm.Root{Image: &vm.ImageRoot{Segments: []string{image}, Device: device}}, Nets: vm.Nets{vm.None{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

// guestSeconds has the guest read the file whole, after its caches were dropped, and returns how
// long that took by the guest's clock.
func guestSeconds(ctx context.Context, t *testing.T, v *vm.VM) float64 {
	t.Helper()
	const script = `echo 3 > /proc/sys/vm/drop_caches; read a rest < /proc/uptime; dd if=/large of=/dev/null bs=1M 2>/dev/null; read z rest < /proc/uptime; echo $a $z`
	var out bytes.Buffer
	if err := v.Exec(ctx, vm.Cmd{Args: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	f := strings.Fields(out.String())
	if len(f) != 2 {
		t.Fatalf("the guest said %q", out.String())
	}
	from, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	to, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return max(to-from, 0.01) // the clock's step
}

// TestCompareImageReads compares reads of a file of an image that is the guest's memory with those
// of a disk, whose pages the guest keeps itself.
func TestCompareImageReads(t *testing.T) {
	image := largeImage(t)
	asMemory, asDisk := imageGuest(t, image, vm.ImageMemory), imageGuest(t, image, vm.ImageDisk)
	var a, b []float64
	for range rounds {
		a = append(a, imageFile/guestSeconds(t.Context(), t, asMemory))
		b = append(b, imageFile/guestSeconds(t.Context(), t, asDisk))
	}
	ratio(t, "reads of an image: memory to disk", a, b, "MiB/s")
}

// TestCompareImageMemory compares what a VM has of the host's memory once it has read the file.
func TestCompareImageMemory(t *testing.T) {
	image := largeImage(t)
	private := func(v *vm.VM) float64 {
		s, err := v.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return float64(s.Private) / (1 << 20)
	}
	own := func(device vm.ImageDevice) (out []float64) {
		for range 2 {
			v := imageGuest(t, image, device)
			if err := v.Exec(t.Context(), vm.Cmd{Args: []string{"/bin/sh", "-c", ":"}}); err != nil {
				t.Fatal(err)
			}
			before := private(v)
			guestSeconds(t.Context(), t, v)
			out = append(out, private(v)-before)
			v.Close()
		}
		return out
	}
	ratio(t, fmt.Sprintf("memory for %d MiB of an image", imageFile), own(vm.ImageMemory), own(vm.ImageDisk), "MiB")
}

// sharers is how many VMs TestCompareImageShared has of one image.
const sharers = 10

// TestCompareImageShared compares what VMs of one image, all of which have read the file, take of
// the host's memory for that with the file's size.
func TestCompareImageShared(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/large:1"
	pushImage(t, ref, largeArchive(t))
	vmm, dir := buildVMM(t), t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data"))
	run := func(args ...string) []byte {
		t.Helper()
		out, err := exec.Command(vmm, args...).Output()
		if err != nil {
			t.Fatalf("vmm %v: %v", args, err)
		}
		return out
	}
	run("pull", "-q", ref)
	var vms []string
	for i := range sharers {
		name := fmt.Sprint("sharer", i)
		run("run", "-d", "--name", name, "-m", "256M", "--image", ref, "--", "/bin/sleep", "100000")
		t.Cleanup(func() { exec.Command(vmm, "rm", "-f", name).Run() })
		run("exec", name, "--", "/bin/sh", "-c", ":")
		vms = append(vms, name)
	}
	var pids []struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(run(append([]string{"inspect"}, vms...)...), &pids); err != nil {
		t.Fatal(err)
	}
	memory := func(field string) (mib float64) {
		for _, p := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID))
			if err != nil {
				t.Fatal(err)
			}
			_, b, _ = bytes.Cut(b, []byte("\n"+field+":"))
			kib, err := strconv.ParseFloat(string(bytes.Fields(b)[0]), 64)
			if err != nil {
				t.Fatal(err)
			}
			mib += kib / 1024
		}
		return mib
	}
	// What processes share is in each one's part (proc_pid_smaps(5), Pss), and so once in all.
	pss, private := memory("Pss"), memory("Private_Dirty")
	for _, name := range vms {
		run("exec", name, "--", "/bin/dd", "if=/large", "of=/dev/null", "bs=1M")
	}
	ratio(t, fmt.Sprintf("%d VMs, %d MiB of an image", sharers, imageFile), []float64{memory("Pss") - pss}, []float64{imageFile}, "MiB")
	ratio(t, "of that, of each VM its own", []float64{(memory("Private_Dirty") - private) / sharers}, []float64{imageFile}, "MiB")
}

// largeArchive has a shell, dd and a file of imageFile.
func largeArchive(t *testing.T) []byte {
	t.Helper()
	busybox, err := (&guestimages.Builder{Log: os.Stderr}).Busybox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range map[string][]byte{"bin/sh": busybox, "bin/sleep": busybox, "bin/dd": busybox, "large": bytes.Repeat([]byte("0123456789abcdef"), imageFile<<16)} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
