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
	versioned := func(name string) (string, bool) { return strings.CutPrefix(name, "vmlinuz-") }
	plain := func(name string) (string, bool) { return "", name == "vmlinuz" || name == "bzImage" }
	for _, version := range []func(string) (string, bool){versioned, plain} {
		for _, f := range all {
			if root := rootOf(all, f); root != nil && len(out) < maxEntries {
				out = append(out, f.kernels(version, root, unclear)...)
			}
		}
		if len(out) > 0 {
			break // a plain name is a link to one of those
		}
	}
	slices.SortStableFunc(out, func(a, b *Entry) int { return compareVersions(b.loader.version, a.loader.version) })
	return out
}

// kernels makes entries of the kernels of a file system, which version tells by their names. It
// is "" of a kernel whose name has none.
func (f *fileSystem) kernels(version func(name string) (string, bool), root *fileSystem, unclear []string) (out []*Entry) {
	for _, dir := range []string{"boot", "."} {
		names := f.list(dir)
		for _, name := range names {
			v, ok := version(name)
			if !ok {
				continue
			}
			e := &Entry{Title: strings.TrimSpace("Linux " + v), Kernel: path.Join(dir, name), home: f, Unclear: slices.Clone(unclear), loader: loaderKey{version: v}}
			initrds := []string{"initrd.img-" + v, "initramfs-" + v + ".img", "initrd-" + v, "initramfs-" + v}
			if v == "" {
				initrds = []string{"initrd.img", "initramfs.img", "initrd"}
			}
			for _, initrd := range initrds {
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
	return out
}
