package vm

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"vmm/bootloader/disk"
	"vmm/internal/treefs"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/virtio/blk"
)

// Bounds of what a guest says of a file system: it comes from the disk, and is as little
// to be believed.
const (
	maxForeign = 64 << 20 // bytes of configurations, and of a list
	maxFetched = 1 << 30  // bytes of a kernel or initial RAM disk
	maxScratch = 16 << 20 // bytes that it writes to a disk of its own, and nobody else sees

	foreignTime = 5 * time.Minute // until all is read
)

var errForeignTime = fmt.Errorf("a guest that reads the disk has not done so within %v", foreignTime)

// foreignScript runs in the guest: "mount PARTITION..." mounts what it can of the first disk,
// with the arrays and logical volumes on it, and tells of each file system in a line, "list DIR"
// tells of the large files of the boot loaders' directories, and "pack DIR" packs the small ones
// and the links.
//
//go:embed foreign.sh
var foreignScript string

// foreignDisk is a guest that reads the file systems of a disk which this program does not, and
// has the disks beside it over which they may reach: one that is meant to do harm finds a guest's
// kernel, and nobody on the host.
type foreignDisk struct{ vm *VM }

// openForeign starts the guest for the first of some images, the disks of a VM. The caller
// closes the guest when what it wants of the file systems is read.
func openForeign(ctx context.Context, images []*image.Image, o *options) (*foreignDisk, error) {
	list := []Option{WithBuilder(o.builder), func(o *options) { o.volumes = true }}
	for _, img := range images {
		// Nothing is written to it; but the kernel, which starts arrays with a bitmap, wants to.
		device, err := blk.New(storage.NewScratch(img, maxScratch), blk.Options{})
		if err != nil {
			return nil, err
		}
		list = append(list, WithDevice(device))
	}
	// A kernel that a disk has led into a fault ends, and does not leave what reads it waiting.
	boot := Boot{Kernel: DefaultKernel, Args: []string{"oops=panic"}}
	v, err := New(Config{Boot: boot, Memory: 256 << 20, CPUs: 1, Nets: Nets{None{}}}, list...)
	if err != nil {
		return nil, err
	}
	if err := v.Start(ctx); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return &foreignDisk{vm: v}, nil
}

// Close ends the guest.
func (f *foreignDisk) Close() error {
	f.vm.Kill()
	return f.vm.Close()
}

// run runs the script; what it says is at most limit bytes.
func (f *foreignDisk) run(ctx context.Context, limit int64, args ...string) ([]byte, error) {
	var out, complaint bytes.Buffer
	err := f.vm.Exec(ctx, Cmd{Args: append([]string{"sh", "-c", foreignScript, "sh"}, args...),
		Stdout: &bounded{&out, limit}, Stderr: &bounded{&complaint, 4096}})
	if errors.Is(err, ErrNotRunning) {
		r, e := f.vm.Wait(ctx)
		err = fmt.Errorf("a guest that reads the disk has ended, by a %s: %w", cmp.Or(r.Detail, r.End.String()), cmp.Or(e, err))
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("a guest that reads the disk: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return out.Bytes(), err
}

// bounded is a writer that fails when it has too much.
type bounded struct {
	w    io.Writer
	left int64
}

var errTooMuch = errors.New("more than the file system of a disk that boots should have")

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errTooMuch
	}
	return b.w.Write(p)
}

// FileSystems returns those of partitions, and of the arrays and logical volumes on the disk.
// One that the guest cannot read either is left out. The files are read from the guest until
// Close.
func (f *foreignDisk) FileSystems(ctx context.Context, partitions []disk.Unread) (out []disk.Foreign, err error) {
	args := []string{"mount"}
	for _, p := range partitions {
		args = append(args, strconv.Itoa(p.Partition))
	}
	b, err := f.run(ctx, maxForeign, args...)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		// The label comes last: it may be anything.
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 8)
		if len(fields) != 8 {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		tree, err := f.tree(ctx, fields[0])
		if err != nil {
			return nil, err
		}
		found := disk.Foreign{Partition: n, Kind: fields[2], Subvolume: fields[3], UUID: fields[6], Label: fields[7], FS: tree}
		found.Array.UUID, found.Array.Name, _ = strings.Cut(fields[5], " ")
		if n < 0 || found.Array.UUID != "" {
			found.Device = fields[4] // which is no partition of the disk
		}
		out = append(out, found)
	}
	return out, nil
}

// tree is what is mounted in a directory of the guest, as far as it concerns boot loaders.
func (f *foreignDisk) tree(ctx context.Context, dir string) (*treefs.FS, error) {
	t := treefs.New(func(name string) ([]byte, error) {
		var b bytes.Buffer
		err := f.vm.Exec(ctx, Cmd{Args: []string{"cat", path.Join(dir, name)}, Stdout: &bounded{&b, maxFetched}})
		return b.Bytes(), err
	})
	list, err := f.run(ctx, maxForeign, "list", dir)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		size, name, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseInt(size, 10, 64); err == nil && n >= 0 {
			t.Promise(name, n)
		}
	}
	packed, err := f.run(ctx, maxForeign, "pack", dir)
	if err != nil {
		return nil, err
	}
	// There are as many archives, one behind the other, as it took commands to name all files.
	for r := bytes.NewReader(packed); r.Len() > 0; {
		if err := unpack(t, tar.NewReader(r)); err != nil {
			return nil, fmt.Errorf("a guest that reads the disk: %w", err)
		}
	}
	return t, nil
}

// unpack adds an archive's files and links to a tree.
func unpack(t *treefs.FS, r *tar.Reader) error {
	for {
		h, err := r.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case h.Typeflag == tar.TypeSymlink:
			t.Link(h.Name, h.Linkname)
		case h.Typeflag == tar.TypeReg:
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			t.Add(h.Name, b)
		}
	}
}
