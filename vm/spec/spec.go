// Package spec reads what people write for the parts of a VM, such as
// disk.qcow2,ro,cache=none, into values of package vm. It is what flags, and files that
// hold the text of flags, are read by; its errors name no flag.
package spec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"vmm/internal/bytesize"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/virtio/blk"
	"vmm/vm"
)

// What the parts look like, for help texts.
const (
	DiskForm = "[file=]PATH[,OPTION...]: ro, format=raw|qcow2, snapshot=on, serial=ID, cache=writeback|writethrough|none|unsafe, " +
		"iops=N, bps=SIZE, queues=N, backing=any"
	PmemForm = "[file=]PATH[,ro]: a file of a multiple of 2 MiB as the guest's memory, /dev/pmem0 and on"
	NetForm  = "MODE[,OPTION...]: user (the default), none, tap,ifname=NAME, switch,name=NAME, stream,path=SOCKET or " +
		"dgram,local=SOCKET,remote=SOCKET"
	ShareForm = "HOST:GUEST[:ro], with an absolute path in the guest"
	PortForm  = "NAME=FILE, NAME=unix:PATH or NAME=none"
)

// split splits at commas; two stand for one that is meant.
func split(s string) []string {
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

func positive(v string) (int64, error) {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n <= 0 {
		return 0, errors.New("a number above 0")
	}
	return n, nil
}

// upTo is positive with a bound.
func upTo(v string, most int) (int, error) {
	n, err := positive(v)
	if err == nil && n > int64(most) {
		err = fmt.Errorf("at most %d", most)
	}
	return int(n), err
}

// bytes reads a size; a number without a suffix is in bytes.
func bytes(v string) (int64, error) {
	n, err := bytesize.Parse(v, 1)
	return int64(n), err
}

// oneOf finds a value in a list.
func oneOf[T ~string](v string, list []T) (T, error) {
	if !slices.Contains(list, T(v)) {
		return "", fmt.Errorf("one of %v", list)
	}
	return T(v), nil
}

// Disk reads a disk (DiskForm).
func Disk(s string) (d vm.Disk, err error) {
	for i, part := range split(s) {
		key, v, given := strings.Cut(part, "=")
		if i == 0 && (!given || key != "file") {
			d.Path = part
			continue
		}
		var err error
		switch key {
		case "file":
			d.Path = v
		case "ro", "readonly":
			d.ReadOnly, err = onOff(v, given)
		case "snapshot":
			d.Ephemeral, err = onOff(v, given)
		case "format":
			d.Format, err = oneOf(v, image.Formats)
		case "serial":
			if d.Serial = v; len(v) > blk.MaxSerial {
				err = fmt.Errorf("at most %d characters", blk.MaxSerial)
			}
		case "cache":
			d.Cache, err = oneOf(v, storage.Caches)
		case "iops":
			d.IOPS, err = positive(v)
		case "bps":
			d.BytesPerSecond, err = bytes(v)
		case "queues":
			d.Queues, err = upTo(v, blk.MaxQueues)
		case "backing":
			if d.AnyBacking = v == "any"; !d.AnyBacking {
				err = errors.New("any")
			}
		default:
			err = errors.New("no such option; " + DiskForm)
		}
		if err != nil {
			return d, fmt.Errorf("%s: %s: %w", s, part, err)
		}
	}
	if d.Path == "" {
		return d, fmt.Errorf("%q: no file", s)
	}
	return d, nil
}

// Pmem reads persistent memory (PmemForm).
func Pmem(s string) (p vm.Pmem, err error) {
	for i, part := range split(s) {
		key, v, given := strings.Cut(part, "=")
		switch {
		case i == 0 && given && key == "file":
			p.Path = v
		case i == 0:
			p.Path = part
		case key == "ro" || key == "readonly":
			p.ReadOnly, err = onOff(v, given)
		default:
			err = errors.New("no such option; " + PmemForm)
		}
		if err != nil {
			return p, fmt.Errorf("%s: %s: %w", s, part, err)
		}
	}
	if p.Path == "" {
		return p, fmt.Errorf("%q: no file", s)
	}
	return p, nil
}

// Share reads a shared directory (ShareForm).
func Share(s string) (vm.Share, error) {
	parts := strings.Split(s, ":")
	ok := len(parts) == 2 || len(parts) == 3 && (parts[2] == "ro" || parts[2] == "rw")
	if !ok || parts[0] == "" || !strings.HasPrefix(parts[1], "/") {
		return vm.Share{}, fmt.Errorf("%q: %s", s, ShareForm)
	}
	return vm.Share{Host: parts[0], Guest: path.Clean(parts[1]), ReadOnly: len(parts) == 3 && parts[2] == "ro"}, nil
}

// Port reads a port of the virtio console (PortForm).
func Port(s string) (vm.Port, error) {
	name, to, ok := strings.Cut(s, "=")
	if !ok || to == "" {
		return vm.Port{}, fmt.Errorf("%q: %s", s, PortForm)
	}
	p := vm.Port{Name: name}
	if to != "none" {
		p.To = Endpoint(to)
	}
	return p, nil
}

// Endpoint reads a file's path, or unix:PATH.
func Endpoint(s string) vm.Endpoint {
	if path, isUnix := strings.CutPrefix(s, "unix:"); isUnix {
		return vm.Endpoint{Socket: path}
	}
	return vm.Endpoint{File: s}
}
