package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// diskChecks are left out unless disks=N is given. They use the host's tools
// in /host, and expect vda to be for partitions and files, vdb read-only with
// "chain" at its start, vdc with room for a copy, and the others empty.
var diskChecks = []check{
	{"disks", disks},
	{"filesystem", fileSystem},
	{"chain", chain},
	{"readonly", readOnly},
	{"load", load},
	{"discard", discard},
	{"resize", resize},
	{"hwrng", hwrng},
	{"ports", ports},
}

// tool runs one of the host's programs with its own libraries.
func tool(name string, args ...string) (string, error) {
	c := exec.Command("/host/lib/ld.so", append([]string{"--library-path", "/host/lib", "/host/bin/" + name}, args...)...)
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), err
}

// disks finds them all, with their serial numbers.
func disks(want map[string]string) error {
	for i := range number(want, "disks") {
		name := fmt.Sprintf("vd%c", 'a'+i)
		b, err := os.ReadFile("/sys/block/" + name + "/serial")
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(string(b)); got != "serial-"+name {
			return fmt.Errorf("%s has serial %q", name, got)
		}
	}
	return nil
}

// pattern is data that is the same each time, and not quickly compressed.
func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

// fileSystem partitions a disk, makes a file system, fills it, reads it after
// the cache was dropped, and checks it.
func fileSystem(map[string]string) error {
	c := exec.Command("/host/lib/ld.so", "--library-path", "/host/lib", "/host/bin/sfdisk", "-q", "--no-reread", "--no-tell-kernel", "/dev/vda")
	c.Stdin = strings.NewReader("label: gpt\nsize=96M\n")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("sfdisk: %w: %s", err, out)
	}
	f, err := os.Open("/dev/vda")
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0)
	f.Close()
	if err != nil {
		return fmt.Errorf("reading the partition table again: %w", err)
	}
	if _, err := tool("mke2fs", "-q", "-t", "ext4", "/dev/vda1"); err != nil {
		return err
	}
	if err := mount("/dev/vda1", "/mnt", "discard"); err != nil {
		return err
	}
	sums := map[string][32]byte{}
	for i := range 20 {
		name := fmt.Sprintf("/mnt/d%d/file", i)
		data := pattern(uint64(i), 1<<20+i*777)
		sums[name] = sha256.Sum256(data)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			return err
		}
	}
	if err := unix.Unmount("/mnt", 0); err != nil {
		return err
	}
	os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if _, err := tool("e2fsck", "-fn", "/dev/vda1"); err != nil {
		return err
	}
	if err := mount("/dev/vda1", "/mnt", "discard"); err != nil {
		return err
	}
	for name, want := range sums {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if sha256.Sum256(b) != want {
			return fmt.Errorf("%s has changed", name)
		}
	}
	return nil
}

func mount(dev, dir, options string) error {
	if err := unix.Mount(dev, dir, "ext4", 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	return nil
}

// chain reads what lies three images deep.
func chain(map[string]string) error {
	f, err := os.Open("/dev/vdb")
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 3*65536)
	if _, err := io.ReadFull(f, b); err != nil {
		return err
	}
	for i, want := range []byte{'a', 'b', 'c'} {
		if got := b[i*65536 : (i+1)*65536]; !bytes.Equal(got, bytes.Repeat([]byte{want}, 65536)) {
			return fmt.Errorf("cluster %d begins with %q, want %c", i, got[:4], want)
		}
	}
	return nil
}

func readOnly(map[string]string) error {
	if b, err := os.ReadFile("/sys/block/vdb/ro"); err != nil || b[0] != '1' {
		return fmt.Errorf("/dev/vdb: ro is %q, %v", b, err)
	}
	fd, err := unix.Open("/dev/vdb", unix.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return nil // newer kernels refuse that already
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, make([]byte, 512), 0); err == nil {
		return errors.New("/dev/vdb was written")
	}
	return nil
}

// load writes and reads back from several processes at once, past the guest's
// cache.
func load(map[string]string) error {
	const workers, blocks, block = 4, 60, 64 << 10
	errs := make([]error, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			fd, err := unix.Open("/dev/vdc", unix.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				errs[w] = err
				return
			}
			defer unix.Close(fd)
			buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				errs[w] = err
				return
			}
			for pass := range 2 {
				for i := range blocks {
					off := int64((i*workers + w) * block)
					data := pattern(uint64(w*blocks+i), block)
					if pass == 0 {
						copy(buf, data)
						_, err = unix.Pwrite(fd, buf, off)
					} else if _, err = unix.Pread(fd, buf, off); err == nil && !bytes.Equal(buf, data) {
						err = fmt.Errorf("block at %d has changed", off)
					}
					if err != nil {
						errs[w] = err
						return
					}
				}
				unix.Fsync(fd)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// discard gives the storage of deleted files back; the test looks at the
// host's file.
func discard(map[string]string) error {
	for i := range 20 {
		if err := os.RemoveAll(fmt.Sprintf("/mnt/d%d", i)); err != nil {
			return err
		}
	}
	unix.Sync()
	if out, err := exec.Command("fstrim", "/mnt").CombinedOutput(); err != nil {
		return fmt.Errorf("fstrim: %w: %s", err, out)
	}
	unix.Sync()
	return unix.Unmount("/mnt", 0)
}

// resize tells the host to make vdd larger and waits until it is.
func resize(want map[string]string) error {
	size := func() string {
		b, _ := os.ReadFile("/sys/block/vdd/size")
		return strings.TrimSpace(string(b))
	}
	before := size()
	fmt.Println("RESIZE NOW")
	for range 600 {
		if s := size(); s != before {
			if s != want["resized"] {
				return fmt.Errorf("%s sectors, want %s", s, want["resized"])
			}
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("it still has %s sectors", before)
}

func hwrng(map[string]string) error {
	f, err := os.Open("/dev/hwrng")
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 4096)
	if _, err := io.ReadFull(f, b); err != nil {
		return err
	}
	counts := map[byte]int{}
	for _, v := range b {
		counts[v]++
	}
	if len(counts) < 200 {
		return fmt.Errorf("only %d different bytes of 4096", len(counts))
	}
	return nil
}

// ports sends what comes from a port back, in capitals.
func ports(map[string]string) error {
	f, err := os.OpenFile("/dev/virtio-ports/test.echo", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 256)
	n, err := f.Read(b)
	if err == nil {
		_, err = f.Write(bytes.ToUpper(b[:n]))
	}
	return err
}
