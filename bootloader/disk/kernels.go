package disk

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// bareKernels makes entries of the kernels in /boot, for disks that were never
// given a boot loader. Where there is a configuration of GRUB's, which has led to no entry, they
// are a guess.
func bareKernels(all []*fileSystem) (out []*Entry) {
	var unclear []string
	for _, f := range all {
		for _, name := range grubConfigs {
			if f.exists(name) {
				unclear = append(unclear, fmt.Sprintf("%s: no entry for Linux was found in it", name))
			}
		}
	}
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
				e := &Entry{Title: "Linux " + version, Kernel: path.Join(dir, name), home: f, Unclear: slices.Clone(unclear), loader: loaderKey{version: version}}
				for _, initrd := range []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version, "initramfs-" + version} {
					if slices.Contains(names, initrd) {
						e.Initrds = []string{path.Join(dir, initrd)}
						break
					}
				}
				e.Args = "root=" + root.deviceName() + " ro"
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
