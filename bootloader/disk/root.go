package disk

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// rootOf is the root of the system whose kernels are on a file system: that itself, if
// it has an /etc, or else another that has an fstab or is of the type of roots. It is nil
// where that leaves none, as on a vfat alone.
func rootOf(all []*fileSystem, f *fileSystem) *fileSystem {
	if f.exists("etc/fstab") {
		return f
	}
	for _, isRoot := range []func(*fileSystem) bool{
		func(o *fileSystem) bool { return o.exists("etc/fstab") },
		func(o *fileSystem) bool { return o.part.kind == typeRoot },
	} {
		if i := slices.IndexFunc(all, isRoot); i >= 0 {
			return all[i]
		}
	}
	if f.kind == "vfat" {
		i := slices.IndexFunc(all, func(o *fileSystem) bool { return o.kind != "vfat" })
		if i < 0 {
			return nil
		}
		return all[i]
	}
	return f
}

// deviceName is how a kernel by itself, which looks into no file system, finds a partition on
// the first disk.
func (p part) deviceName() string {
	switch {
	case p.uuid != "":
		return "PARTUUID=" + p.uuid
	case p.number != 0:
		return fmt.Sprintf("/dev/vda%d", p.number)
	}
	return "/dev/vda"
}

// deviceName is how the kernel of a guest with our disk finds a file system's device.
func (f *fileSystem) deviceName() string {
	if f.volume != "" {
		return f.volume
	}
	return f.part.deviceName()
}

// otherBus is what the first disk and its partitions are called behind other controllers: of
// SCSI and SATA, IDE, Xen, NVMe and SD cards. Here they are those of virtio-blk.
var otherBus = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^/dev/(?:(?:sd|hd|xvd)a(\d*)|(?:nvme0n1|mmcblk0)(?:p(\d+))?)$`)
})

// rootArguments makes the arguments of a kernel name its root in a way that it finds in this
// machine. What stands there for a disk behind another controller becomes this one; without an
// initial RAM disk the kernel knows no UUIDs and labels of file systems; and where no root is
// named it is the partition whose type says so, as systemd finds it where the firmware is EFI,
// or else, for a kernel that is on its own, the one that has an fstab.
func rootArguments(args string, all []*fileSystem, parts []part, initrd bool) string {
	named := false
	for _, a := range strings.Fields(args) {
		name, _, _ := strings.Cut(a, "=")
		named = named || slices.Contains(namesRoot, name)
		if root, ok := strings.CutPrefix(a, "root="); ok {
			if here := rootHere(strings.Trim(root, `"`), all, parts, initrd); here != "" {
				args = strings.Replace(args, a, "root="+here, 1)
			}
		}
	}
	if !named {
		root := slices.IndexFunc(parts, func(p part) bool { return p.kind == typeRoot })
		if root < 0 && !initrd {
			root = slices.IndexFunc(parts, func(p part) bool {
				return slices.ContainsFunc(all, func(f *fileSystem) bool { return f.part == p && f.exists("etc/fstab") })
			})
		}
		if root >= 0 {
			args = strings.TrimSpace(args + " root=" + parts[root].deviceName())
		}
	}
	return args
}

// namesRoot are the arguments beside which the partition types say nothing
// (systemd-gpt-auto-generator(8), kernel-command-line(7)).
var namesRoot = []string{"root", "roothash", "usrhash", "mount.usr", "ostree", "systemd.gpt_auto", "rd.systemd.gpt_auto"}

// rootHere is another name for a root, "" where its own is good.
func rootHere(root string, all []*fileSystem, parts []part, initrd bool) string {
	if m := otherBus().FindStringSubmatch(root); m != nil {
		number, _ := strconv.Atoi(m[1] + m[2])
		for _, p := range parts {
			if p.number == number {
				return p.deviceName()
			}
		}
	}
	if initrd {
		return ""
	}
	kind, value, ok := strings.Cut(root, "=")
	if !ok {
		kind, value = path.Split(root)
	}
	for _, f := range all {
		switch kind {
		case "UUID", "/dev/disk/by-uuid/":
			ok = f.uuid != "" && strings.EqualFold(value, f.uuid)
		case "LABEL", "/dev/disk/by-label/":
			ok = f.label != "" && value == f.label
		case "/dev/disk/by-partuuid/":
			ok = f.part.uuid != "" && strings.EqualFold(value, f.part.uuid)
		default:
			return ""
		}
		if ok {
			return f.deviceName()
		}
	}
	return ""
}
