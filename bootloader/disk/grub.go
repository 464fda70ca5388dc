package disk

import (
	"context"
	"path"

	"github.com/u-root/u-root/pkg/boot"
	"github.com/u-root/u-root/pkg/boot/grub"
	"github.com/u-root/u-root/pkg/mount"
)

var grubConfigs = []string{"boot/grub/grub.cfg", "grub/grub.cfg", "boot/grub2/grub.cfg", "grub2/grub.cfg"}

// grubEntries reads GRUB's configuration.
func grubEntries(f *fileSystem) (out []*Entry) {
	configs := grubConfigs
	for _, vendor := range f.list("EFI") {
		configs = append(configs, path.Join("EFI", vendor, "grub.cfg"))
	}
	for _, config := range configs {
		out = append(out, f.parsed(config, func() ([]boot.OSImage, error) {
			return grub.ParseConfigFile(context.Background(), f.schemes(), config, diskRoot, nil, &mount.Pool{})
		})...)
	}
	return out
}
