package disk

import (
	"vmm/bootloader/extlinux"
)

// extlinuxConfigs are the places of the configurations of extlinux, syslinux and isolinux.
var extlinuxConfigs = []string{
	"boot/extlinux/extlinux.conf", "extlinux/extlinux.conf", "extlinux.conf", "boot/extlinux.conf",
	"boot/syslinux/syslinux.cfg", "syslinux/syslinux.cfg", "syslinux.cfg", "boot/syslinux/extlinux.conf", "syslinux/extlinux.conf", "boot/syslinux.cfg",
	"boot/isolinux/isolinux.cfg", "isolinux/isolinux.cfg", "isolinux.cfg", "boot/isolinux.cfg",
}

// extlinuxEntries reads the configurations of extlinux and its relatives.
func extlinuxEntries(f *fileSystem) (out []*Entry) {
	for _, config := range extlinuxConfigs {
		if !f.exists(config) {
			continue
		}
		menu, err := f.extlinux(config)
		if err != nil {
			continue
		}
		first := len(out) == 0
		for _, x := range menu.Entries {
			e := &Entry{Title: x.Title, Menu: x.Menu, ID: x.Label, Source: config, Kernel: x.Kernel, Initrds: x.Initrds, Args: x.Args,
				Unclear: x.NotUnderstood, home: f, preferred: first && x == menu.Default}
			out = append(out, e)
		}
	}
	return out
}

// extlinux reads one configuration.
func (f *fileSystem) extlinux(config string) (menu *extlinux.Menu, err error) {
	defer catch(config, &err)
	return extlinux.Parse(f.FS, config)
}
