package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/bootloader"
	"vmm/bootloader/disk"
	"vmm/internal/bytesize"
	"vmm/internal/temp"
	"vmm/machine"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/storage/rootfs"
	"vmm/virtio"
	"vmm/virtio/blk"
)

// diskFlag is one --disk.
type diskFlag struct {
	path   string
	serial string
	queues int
	image  image.Options
	limit  blk.Limit
}

const diskUsage = "disk `[file=]PATH[,OPTION...]`: ro, format=raw|qcow2, snapshot=on, serial=ID, cache=writeback|writethrough|none|unsafe, " +
	"iops=N, bps=SIZE, queues=N, backing=any; several are possible"

// splitOptions splits at commas; two stand for one that is meant.
func splitOptions(s string) []string {
	const comma = "\x00"
	parts := strings.Split(strings.ReplaceAll(s, ",,", comma), ",")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], comma, ",")
	}
	return parts
}

// onOff reads a switch; alone it is on.
func onOff(v string, given bool) (bool, error) {
	switch {
	case !given, v == "on", v == "true", v == "yes":
		return true, nil
	case v == "off", v == "false", v == "no":
		return false, nil
	}
	return false, errors.New("on or off")
}

// parseDisk reads the value of --disk.
func parseDisk(s string) (d diskFlag, err error) {
	for i, part := range splitOptions(s) {
		key, v, given := strings.Cut(part, "=")
		if i == 0 && (!given || key != "file") {
			d.path = part
			continue
		}
		var err error
		switch key {
		case "file":
			d.path = v
		case "ro", "readonly":
			d.image.ReadOnly, err = onOff(v, given)
		case "snapshot":
			d.image.Snapshot, err = onOff(v, given)
		case "format":
			if d.image.Format = v; !slices.Contains(image.Formats, v) {
				err = fmt.Errorf("one of %s", strings.Join(image.Formats, ", "))
			}
		case "serial":
			if d.serial = v; len(v) > blk.MaxSerial {
				err = fmt.Errorf("at most %d characters", blk.MaxSerial)
			}
		case "cache":
			if d.image.Cache = storage.Cache(v); !slices.Contains(storage.Caches, d.image.Cache) {
				err = fmt.Errorf("one of %v", storage.Caches)
			}
		case "iops":
			d.limit.IOPS, err = positive(v)
		case "bps":
			var n byteSize
			n, err = bytesize.Parse(v, 1)
			d.limit.BytesPerSecond = int64(n)
		case "queues":
			var n int64
			if n, err = positive(v); n > blk.MaxQueues {
				err = fmt.Errorf("at most %d", blk.MaxQueues)
			}
			d.queues = int(n)
		case "backing":
			if d.image.AnyBacking = v == "any"; !d.image.AnyBacking {
				err = errors.New("any")
			}
		default:
			err = errors.New("no such option; " + strings.ReplaceAll(diskUsage, "`", ""))
		}
		if err != nil {
			return d, fmt.Errorf("--disk %s: %s: %w", s, part, err)
		}
	}
	if d.path == "" {
		return d, fmt.Errorf("--disk %q: no file", s)
	}
	return d, nil
}

func positive(v string) (int64, error) {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n <= 0 {
		return 0, errors.New("a number above 0")
	}
	return n, nil
}

// diskSet is the disks of a VM: their images, until devices takes them over.
type diskSet struct {
	flags []diskFlag
	open  []*image.Image
	disks []*vmDisk // once devices has made them
	// controlled are the disks whose size can be changed while the VM runs.
	controlled []controlledDisk
}

// vmDisk is a disk with its device.
type vmDisk struct {
	flag   diskFlag
	image  *image.Image
	device *blk.Device
	closed bool // the image is, for now
}

// openDisks opens the images of --rootfs and --disk.
func (f *runFlags) openDisks() (_ *diskSet, err error) {
	s := &diskSet{}
	if f.restored != nil {
		return s, f.restored.openDisks(s)
	}
	for _, v := range f.disks {
		d, err := parseDisk(v)
		if err != nil {
			return nil, &exitError{statusUsage, err}
		}
		s.flags = append(s.flags, d)
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if f.rootfs != "" {
		root, err := rootDisk(f.rootfs)
		if err != nil {
			return nil, fmt.Errorf("--rootfs: %w", err)
		}
		s.open = append(s.open, root)
		s.flags = append([]diskFlag{{serial: "rootfs"}}, s.flags...)
	}
	if f.rootDisk {
		root, err := openRoot(f.root)
		if err != nil {
			return nil, fmt.Errorf("--root: %w", err)
		}
		s.open = append(s.open, root)
		s.flags = append([]diskFlag{{serial: "root"}}, s.flags...)
	}
	for _, d := range s.flags[len(s.open):] {
		img, err := image.Open(d.path, d.image)
		if err != nil {
			return nil, err
		}
		s.open = append(s.open, img)
	}
	return s, nil
}

// devices makes the guest's disks, which own the images from then on.
func (s *diskSet) devices(cpus int, space *spaceWatch, warn func(error)) ([]virtio.Device, error) {
	var out []virtio.Device
	for i, d := range s.flags {
		o := blk.Options{Serial: d.serial, Queues: d.queues, Limit: d.limit, Log: warn,
			Writethrough: d.image.Cache == storage.Writethrough}
		if o.Queues == 0 {
			o.Queues = min(cpus, 8)
		}
		if space != nil {
			o.NoSpace = space.hold
		}
		dev, err := blk.New(s.open[i], o)
		if err != nil {
			return nil, err
		}
		out = append(out, dev)
		s.disks = append(s.disks, &vmDisk{flag: d, image: s.open[i], device: dev})
		if path, err := realPath(s.open[i].File.Name()); err == nil { // a file without a name cannot be asked for
			s.controlled = append(s.controlled, controlledDisk{path, dev})
		}
	}
	s.open = nil
	return out, nil
}

func (s *diskSet) close() {
	for _, img := range s.open {
		img.Close()
	}
	s.open = nil
}

// boot reads from the first disk what it would boot: the entry of a name, or
// the default.
func (s *diskSet) boot(name string) (*boot, error) {
	img := s.open[0]
	entries, err := disk.Entries(storage.ReaderAt{Disk: img}, img.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", img.File.Name(), err)
	}
	e := entries[0]
	if name != "" {
		if e, err = disk.Find(entries, name); err != nil {
			return nil, fmt.Errorf("%s: %w", img.File.Name(), err)
		}
	}
	data, initrds, err := e.Load()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", img.File.Name(), err)
	}
	kernel, err := bootloader.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", img.File.Name(), e.Kernel, err)
	}
	return &boot{kernel: kernel, initrds: initrds, args: []string{e.Args}}, nil
}

// rootDevice is the first disk, which is rootDisk's, and rootArgs boots from it.
const (
	rootDevice = "/dev/vda"
	rootArgs   = "root=" + rootDevice + " rootfstype=ext4 rw"
)

// rootFree is the room in a root disk beside its files, in bytes.
const rootFree = 8 << 30

// rootDisk makes a disk of a directory or tar archive, in a file without a
// name.
func rootDisk(source string) (*image.Image, error) {
	f, err := temp.File("vmm-rootfs-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if err := rootfs.Build(source, f, rootFree); err != nil {
		return nil, err
	}
	return image.Open(f.Name(), image.Options{Format: image.Raw, Cache: storage.Unsafe})
}

// openRoot opens the root of a guest that runs a command: an image, whose changes
// are not kept, or a tar archive.
func openRoot(path string) (*image.Image, error) {
	if tar, err := rootfs.IsTar(path); err != nil || tar {
		if err != nil {
			return nil, err
		}
		return rootDisk(path)
	}
	return image.Open(path, image.Options{ReadOnly: true})
}

// spaceWatch pauses a machine while the host's disk is full
// (--on-enospc pause).
type spaceWatch struct {
	out io.Writer

	mu      sync.Mutex
	machine *machine.Machine
	waiting int
	over    chan struct{} // closed when the machine can go on, while it cannot
}

// spaceCheck is how often a full disk is tried again.
const spaceCheck = time.Second

// holds tells whether the machine is paused now; on nil it is not.
func (s *spaceWatch) holds() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting > 0
}

// attach names the machine to pause; on nil it does nothing.
func (s *spaceWatch) attach(m *machine.Machine) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machine = m
}

// hold implements blk.Options.NoSpace: it tries until there is room.
func (s *spaceWatch) hold(err error, try func() error, done <-chan struct{}) error {
	s.add(1, err)
	defer s.add(-1, nil)
	for errors.Is(err, unix.ENOSPC) {
		select {
		case <-time.After(spaceCheck):
			err = try()
		case <-done:
			return err
		}
	}
	return err
}

// add counts the requests that wait; the first pauses the machine, the last
// lets it go on.
func (s *spaceWatch) add(n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting += n
	// Not from here: a vCPU may be waiting for this very request, in a reset.
	switch {
	case s.machine == nil: // it does not run yet
	case n > 0 && s.waiting == 1:
		fmt.Fprintf(s.out, "vmm: %v: the guest waits until there is room\n", err)
		s.over = make(chan struct{})
		go func(m *machine.Machine, over <-chan struct{}) {
			resume := m.Pause()
			<-over
			resume()
		}(s.machine, s.over)
	case s.over != nil && s.waiting == 0:
		fmt.Fprint(s.out, "vmm: there is room again: the guest goes on\n")
		close(s.over)
		s.over = nil
	}
}
