package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"vmm/bootloader"
	"vmm/bootloader/disk"
	guestimages "vmm/guest-images"
	"vmm/guest-images/guestinit"
	"vmm/machine"
)

// booted is what is booted.
type booted struct {
	kernel  *bootloader.Kernel
	symbols string // its System.map, if known
	initrds [][]byte
	args    []string
}

// kernelChoice is the kernel that Boot means on this host.
type kernelChoice struct {
	image   string // "" is the slim one, or what the first disk boots
	modules string
	stock   bool // both are Debian's, in the place of the slim kernel
}

// chooseKernel takes Debian's kernel with its modules for that of the default guest
// where the slim one is not built.
func (v *VM) chooseKernel(ctx context.Context) error {
	b := &v.cfg.Boot
	v.kernel = kernelChoice{image: b.Kernel, modules: b.Modules}
	if b.Kernel == DefaultKernel || b.Kernel == "" && (v.cfg.Root != nil || len(v.cfg.Disks) == 0) {
		return v.takeDefault(ctx)
	}
	return nil
}

// takeDefault is chooseKernel for a VM that has the default guest.
func (v *VM) takeDefault(ctx context.Context) error {
	v.kernel.image = ""
	if _, ok := guestimages.HasSlimKernel(); ok {
		return nil
	}
	if _, ok := guestimages.HasStockKernel(); !ok { // nothing is fetched for a guest that cannot run
		if _, err := v.cfg.Engine.Choose(v.opts.notes); err != nil {
			return err
		}
	}
	k, err := v.opts.builder.StockKernel(ctx)
	if err != nil {
		return err
	}
	v.kernel.image = k.Image
	if v.kernel.stock = v.kernel.modules == ""; v.kernel.stock {
		v.kernel.modules = k.Modules
	}
	return nil
}

// chooseBoot finds what the Config says to boot. A guest for commands has our init,
// whatever its kernel, and so has one with modules: somebody has to load them.
func (v *VM) chooseBoot(ctx context.Context, guest *guestinit.Config) (*booted, error) {
	if v.kernel.image != "" {
		return v.givenKernel(ctx, guest)
	}
	if v.cfg.Boot.Kernel == "" && v.cfg.Root == nil && len(v.disks.disks) > 0 {
		b, err := v.disks.boot(ctx, v.cfg.Boot.Entry, v.opts)
		if err == nil || v.cfg.Boot.Entry != "" || errors.Is(err, disk.ErrUnclear) {
			return b, err // another system than the disk's is not what somebody wants who has one there
		}
		v.opts.log(fmt.Errorf("%w: booting the default guest", err))
		if err := v.takeDefault(ctx); err != nil {
			return nil, err
		}
		if v.kernel.image != "" {
			return v.givenKernel(ctx, guest)
		}
	}
	return v.defaultGuest(ctx, guest)
}

// givenKernel is a kernel that the user names, or Debian's.
func (v *VM) givenKernel(ctx context.Context, guest *guestinit.Config) (*booted, error) {
	kernel, err := bootloader.Open(v.kernel.image)
	b := &booted{kernel: kernel}
	if err != nil {
		return b, err
	}
	if !v.cfg.ForCommands() && !v.cfg.HasImageInit() {
		b.initrds = kernel.Initrds
		if kernel.Args != "" {
			b.args = append(b.args, kernel.Args)
		}
		if v.kernel.modules == "" {
			return b, nil
		}
	}
	b.args = append(b.args, v.opts.initArgs...)
	return b, v.addInit(ctx, b, guest)
}

// defaultGuest is the slim kernel, with the initial RAM disk unless there is a
// root disk.
func (v *VM) defaultGuest(ctx context.Context, guest *guestinit.Config) (*booted, error) {
	slim, err := v.opts.builder.SlimKernel(ctx)
	if err != nil {
		return nil, err
	}
	b := &booted{symbols: slim.SystemMap}
	if v.cfg.Root == nil || !v.cfg.Root.Boot {
		if err := v.addInit(ctx, b, guest); err != nil {
			return nil, err
		}
	}
	b.args = append(b.args, v.opts.initArgs...)
	b.kernel, err = bootloader.Open(slim.Image)
	return b, err
}

// addInit gives a guest the default initial RAM disk, with what its init is to do.
func (v *VM) addInit(ctx context.Context, b *booted, guest *guestinit.Config) error {
	initrd, err := v.opts.builder.Initramfs(ctx)
	if err != nil {
		return err
	}
	guest.NoAgent, guest.AgentOnly, guest.Volumes = v.cfg.NoAgent, v.cfg.ForCommands() || v.cfg.HasImageInit(), v.opts.volumes
	guest.WaitNetwork = slices.ContainsFunc(v.cfg.Nets, asksGateway)
	guest.Addresses = v.cfg.addresses()
	if r := v.cfg.Root; r != nil && r.Boot {
		guest.Root = &guestinit.Root{Disk: rootDevice, Boot: true}
	}
	var files []cpio.Record
	if v.kernel.modules != "" {
		var more []string
		if len(v.pmems) > 0 || v.image != nil && v.image.memory != nil {
			more = guestimages.PmemModules
		}
		if files, guest.Modules, err = guestimages.Modules(v.kernel.modules, more...); err != nil {
			return of("Boot.Modules", err)
		}
	}
	now := *guest
	if v.cfg.ForCommands() {
		now.Mounts = nil // the agent has them mounted, also where nothing is booted
	}
	config, err := json.Marshal(&now)
	if err != nil {
		return err
	}
	extra, err := guestimages.Archive(append(files, cpio.StaticFile(strings.TrimPrefix(guestinit.ConfigPath, "/"), string(config), 0o644))...)
	if err != nil {
		return err
	}
	b.initrds = append(b.initrds, initrd, extra)
	b.args = append(b.args, guestinit.HostnameArg+v.cfg.GuestName(), "quiet")
	return nil
}

// bootConfig is the configuration of a machine that boots.
func (v *VM) bootConfig(ctx context.Context) (*machine.Config, error) {
	b, err := v.chooseBoot(ctx, &v.shares.config)
	if err != nil {
		return nil, err
	}
	v.symbols = b.symbols
	// The user's come last, where they win if the kernel takes the last.
	args := b.args
	if r := v.cfg.Root; r != nil && r.Boot {
		args = append(args, rootArgs)
	}
	if v.cfg.ConsoleDevice == VirtioConsole {
		args = append(args, "console=hvc0")
	}
	args = append(args, v.cfg.Boot.Args...)
	for _, path := range v.cfg.Boot.Initrds {
		initrd, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		b.initrds = append(b.initrds, initrd)
	}
	return &machine.Config{
		CPUs: v.cfg.CPUs, Memory: uint64(v.cfg.Memory), HugePages: v.cfg.HugePages, Nested: v.cfg.Nested, CPUModel: v.cfg.CPUModel, Kernel: b.kernel,
		Initrd: bootloader.JoinInitrds(b.initrds...), Cmdline: strings.Join(args, " "),
		Protocol: v.cfg.Boot.Protocol, Transport: v.cfg.Transport,
	}, nil
}
