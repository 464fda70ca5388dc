package disk

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// bareKernels makes entries of the kernels in /boot, for disks that were never
// given a boot loader.
func bareKernels(all []*fileSystem) (out []*Entry) {
	for _, f := range all {
		root := rootOf(all, f)
		if root == nil {
			continue
		}
		for _, dir := range []string{"boot", "."} {
			names := f.list(dir)
			for _, name := range names {
				version, ok := strings.CutPrefix(name, "vmlinuz-")
				if !ok {
					continue
				}
				e := &Entry{Title: "Linux " + version, Kernel: path.Join(dir, name), home: f, loader: loaderKey{version: version}}
				for _, initrd := range []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version, "initramfs-" + version} {
					if slices.Contains(names, initrd) {
						e.Initrds = []string{path.Join(dir, initrd)}
						break
					}
				}
				e.Args = "root=" + root.partitionName() + " ro"
				if len(e.Initrds) > 0 && root.uuid != "" {
					e.Args = "root=UUID=" + root.uuid + " ro"
				}
				if root.subvolume != "" {
					e.Args += " rootflags=subvol=" + root.subvolume
				}
				out = append(out, e)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *Entry) int { return compareVersions(b.loader.version, a.loader.version) })
	return out
}

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

// partitionName is how a kernel by itself, which looks into no file system, finds this one on
// the first disk.
func (f *fileSystem) partitionName() string {
	switch {
	case f.volume != "":
		return f.volume
	case f.part.uuid != "":
		return "PARTUUID=" + f.part.uuid
	case f.part.number != 0:
		return fmt.Sprintf("/dev/vda%d", f.part.number)
	}
	return "/dev/vda"
}

// withoutInitrd replaces the root's UUID in the arguments of a kernel that has no initial RAM
// disk: what is there by itself does not know those of file systems.
func withoutInitrd(args string, all []*fileSystem) string {
	fields := strings.Fields(args)
	for i, a := range fields {
		uuid, ok := strings.CutPrefix(a, "root=UUID=")
		if !ok {
			continue
		}
		for _, f := range all {
			if f.uuid != "" && strings.EqualFold(strings.Trim(uuid, `"`), f.uuid) {
				fields[i] = "root=" + f.partitionName()
			}
		}
	}
	return strings.Join(fields, " ")
}
