package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/machine"
	"vmm/storage"
	"vmm/storage/image"
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
			err = n.setUnit(v, 0)
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

// open opens the image and makes the guest's disk of it.
func (d *diskFlag) open(cpus int, space *spaceWatch, warn func(error)) (*blk.Device, *image.Image, error) {
	img, err := image.Open(d.path, d.image)
	if err != nil {
		return nil, nil, err
	}
	queues := d.queues
	if queues == 0 {
		queues = min(cpus, 8)
	}
	o := blk.Options{Serial: d.serial, Queues: queues, Limit: d.limit, Log: warn,
		Writethrough: d.image.Cache == storage.Writethrough}
	if space != nil {
		o.NoSpace = space.hold
	}
	dev, err := blk.New(img, o)
	if err != nil {
		return nil, nil, errors.Join(err, img.Close())
	}
	return dev, img, nil
}

// spaceWatch pauses a machine while the host's disk is full
// (--on-enospc pause).
type spaceWatch struct {
	out io.Writer

	mu      sync.Mutex
	machine *machine.Machine
	waiting int
}

// spaceCheck is how often a full disk is tried again.
const spaceCheck = time.Second

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
	case s.machine == nil:
	case n > 0 && s.waiting == 1:
		fmt.Fprintf(s.out, "vmm: %v: the guest waits until there is room\n", err)
		go s.machine.Pause()
	case s.waiting == 0:
		fmt.Fprint(s.out, "vmm: there is room again: the guest goes on\n")
		go s.machine.Resume()
	}
}
