package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
	"vmm/storage/image"
	"vmm/tests/hosttools"
	"vmm/virtio/blk"
	"vmm/virtio/virtiotest"
)

const (
	diskSize   = 256 << 20
	diskMemory = 64 << 20
	diskRound  = 300 * time.Millisecond
	diskRounds = 9
)

// pattern is a way to use a disk.
type pattern struct {
	name   string
	size   int64
	depth  int
	random bool
	write  bool
}

var patterns = []pattern{
	{"4 KiB random reads, depth 1", 4096, 1, true, false},
	{"4 KiB random reads, depth 32", 4096, 32, true, false},
	{"1 MiB sequential reads, depth 4", 1 << 20, 4, false, false},
	{"4 KiB random writes, depth 32", 4096, 32, true, true},
	{"1 MiB sequential writes, depth 4", 1 << 20, 4, false, true},
}

// drive plays a guest that uses a disk for a while and returns how many
// requests a second it got done.
func drive(d *virtiotest.Driver, mem *virtiotest.Memory, p pattern) float64 {
	rng := rand.New(rand.NewPCG(1, 2))
	areas := map[uint16]uint64{}
	next := int64(0)
	add := func(area uint64) {
		off := next
		if next += p.size; next >= diskSize {
			next = 0
		}
		if p.random {
			off = rng.Int64N(diskSize/p.size) * p.size
		}
		head := mem.Bytes[area:]
		binary.LittleEndian.PutUint32(head, map[bool]uint32{true: 1}[p.write])
		binary.LittleEndian.PutUint64(head[8:], uint64(off/512))
		h, ok := d.Add(virtiotest.Buffer{Addr: area, Len: 16},
			virtiotest.Buffer{Addr: area + 4096, Len: uint32(p.size), Write: !p.write},
			virtiotest.Buffer{Addr: area + 512, Len: 1, Write: true})
		if !ok {
			panic("the queue is full")
		}
		areas[h] = area
	}
	from := d.Added()
	for i := range p.depth {
		add(virtiotest.QueueEnd(1) + uint64(i)*uint64(p.size+8192))
	}
	d.Kick(from)
	start, n := time.Now(), 0
	for time.Since(start) < diskRound {
		head, _ := d.Wait()
		from := d.Added()
		for ok := true; ok; head, _, ok = d.Next() {
			if mem.Bytes[areas[head]+512] != 0 {
				panic("I/O error")
			}
			n++
			add(areas[head])
		}
		d.Kick(from)
	}
	took := time.Since(start)
	for range p.depth {
		d.Wait()
	}
	return float64(n) / took.Seconds()
}

// TestCompareDisk drives virtio-blk without a VM: vmm's device in this process,
// and QEMU's in qemu-storage-daemon behind vhost-user, on the same images.
func TestCompareDisk(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skip("qemu-storage-daemon is not installed: apt-get install qemu-system-common")
	}
	dir := t.TempDir()
	raw, qcow2 := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	content := make([]byte, diskSize)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := 0; i < len(content); i += 8 {
		binary.LittleEndian.PutUint64(content[i:], rng.Uint64())
	}
	if err := os.WriteFile(raw, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", raw, qcow2).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct{ format, path string }{{"raw", raw}, {"qcow2", qcow2}} {
		for _, p := range patterns {
			t.Run(c.format+", "+p.name, func(t *testing.T) {
				var ours, theirs []float64
				for range diskRounds {
					ours = append(ours, driveOurs(t, c.format, c.path, p))
					theirs = append(theirs, driveTheirs(t, c.format, c.path, p))
				}
				ratio(t, c.format+", "+p.name+" (higher is better)", ours, theirs, "requests/s")
			})
		}
	}
}

// TestCompareFio runs fio in a guest and on the host, on the same file past the
// host's cache: what a guest gets of the disk. It has no goal, for it depends on
// how fast the host runs guest kernel mode.
func TestCompareFio(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed: apt-get install fio")
	}
	dir := t.TempDir()
	file, binary, initrd := filepath.Join(dir, "disk.raw"), buildVMM(t), filepath.Join(dir, "fio.cpio")
	if err := os.WriteFile(file, make([]byte, diskSize), 0o644); err != nil {
		t.Fatal(err)
	}
	job := func(path string) string {
		return "--minimal --name=x --thread --numjobs=4 --group_reporting --ioengine=psync --rw=randread --bs=4k --direct=1 " +
			"--time_based --runtime=3 --size=256m --filename=" + path
	}
	tools, err := hosttools.Archive("fio")
	if err != nil {
		t.Fatal(err)
	}
	script, err := guestimages.Archive(cpio.StaticFile("etc/rc.local", "#!/bin/sh\n"+hosttools.Loader+" --library-path "+hosttools.Libraries+
		" /host/bin/fio "+job("/dev/vda")+"\npoweroff\nsleep 60\n", 0o755))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, append(tools, script...), 0o644); err != nil {
		t.Fatal(err)
	}
	var guest, host []float64
	for range 3 {
		out, err := exec.Command(binary, "run", "--kernel", "default", "-m", "1G", "-c", "2", "--timeout", "5m", "--initrd", initrd,
			"--disk", file+",format=raw,cache=none").Output()
		guest = append(guest, fioIOPS(t, string(out), err))
		out, err = exec.Command("fio", strings.Fields(job(file))...).Output()
		host = append(host, fioIOPS(t, string(out), err))
	}
	ratio(t, "fio in the guest beside the host's", guest, host, "IOPS")
}

// fioIOPS reads fio's terse output, version 3: the eighth field is the reads a
// second.
func fioIOPS(t *testing.T, out string, err error) float64 {
	t.Helper()
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Split(line, ";"); len(f) > 8 && f[0] == "3" {
			if n, err := strconv.ParseFloat(f[7], 64); err == nil {
				return n
			}
		}
	}
	t.Fatalf("no result of fio's: %v\n%s", err, out)
	return 0
}

func driveOurs(t *testing.T, format, path string, p pattern) float64 {
	img, err := image.Open(path, image.Options{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := blk.New(img, blk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(diskMemory)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	g, err := virtiotest.Start(dev, mem, 256, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var before, after runtime.MemStats
	drive(g.Queues[0], mem, p) // the first round fills the pools
	runtime.ReadMemStats(&before)
	rate := drive(g.Queues[0], mem, p)
	runtime.ReadMemStats(&after)
	if per := float64(after.Mallocs-before.Mallocs) / (rate * diskRound.Seconds()); per > 0.02 {
		t.Errorf("%.3f allocations a request", per)
	}
	return rate
}

func driveTheirs(t *testing.T, format, path string, p pattern) float64 {
	dir, err := os.MkdirTemp("", "vmm-bench-") // not t.TempDir: QEMU takes no commas
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "vhost")
	c := exec.Command("qemu-storage-daemon",
		"--object", "iothread,id=io",
		"--blockdev", fmt.Sprintf("driver=file,node-name=file,filename=%s", path),
		"--blockdev", fmt.Sprintf("driver=%s,node-name=disk,file=file", format),
		"--export", fmt.Sprintf("type=vhost-user-blk,id=e,node-name=disk,writable=on,iothread=io,addr.type=unix,addr.path=%s", socket))
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	v, err := dialVhostUser(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer v.c.Close()
	mem, err := virtiotest.NewMemory(diskMemory)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	drivers, err := v.start(mem, 256)
	if err != nil {
		t.Fatal(err)
	}
	d := drivers[0]
	drive(d, mem, p)
	return drive(d, mem, p)
}
