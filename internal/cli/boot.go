package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/term"

	"vmm/bootloader"
	guestimages "vmm/guest-images"
	"vmm/guest-images/guestinit"
	"vmm/kvm"
	"vmm/machine"
)

// boot is what to boot.
type boot struct {
	kernel  *bootloader.Kernel
	symbols string // its System.map, if known
	initrds [][]byte
	args    []string
}

// defaultKernel is the value of --kernel for the default guest's.
const defaultKernel = "default"

// chooseRoot decides what the root of a guest is that runs a command.
func (f *runFlags) chooseRoot() error {
	switch {
	case !f.sandbox():
		return nil
	case f.root == "":
		f.rootDir = "/"
		return nil
	}
	st, err := os.Stat(f.root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	if f.rootDisk = !st.IsDir(); !f.rootDisk {
		f.rootDir, err = realPath(f.root)
	}
	return err
}

// chooseKernel takes Debian's kernel with its modules for that of the default guest
// where the slim one is not built.
func (f *runFlags) chooseKernel(ctx context.Context) error {
	isDefault := f.kernel == defaultKernel || f.kernel == "" && (f.sandbox() || f.rootfs != "" || len(f.disks) == 0)
	if f.restored != nil || !isDefault {
		return nil
	}
	return f.takeDefault(ctx)
}

// takeDefault is chooseKernel for a VM that has the default guest.
func (f *runFlags) takeDefault(ctx context.Context) error {
	if _, ok := guestimages.HasSlimKernel(); ok {
		return nil
	}
	if _, ok := guestimages.HasStockKernel(); !ok { // nothing is fetched for a guest that cannot run
		sys, err := kvm.Open()
		if err != nil {
			return err
		}
		sys.Close()
	}
	builder, finish := setupBuilder()
	defer finish()
	k, err := builder.StockKernel(ctx)
	if err != nil {
		return err
	}
	f.kernel = k.Image
	if f.stock = f.modules == ""; f.stock {
		f.modules = k.Modules
	}
	return nil
}

// chooseBoot finds what the flags say to boot. A guest that runs a command has our
// init, whatever its kernel, and so has one with modules: somebody has to load them.
func (f *runFlags) chooseBoot(ctx context.Context, disks *diskSet, guest *guestinit.Config) (*boot, error) {
	if f.kernel != "" && f.kernel != defaultKernel {
		return f.givenKernel(ctx, guest)
	}
	if f.kernel == "" && f.rootfs == "" && !f.sandbox() && len(disks.open) > 0 {
		b, err := disks.boot(f.bootEntry)
		if err == nil || f.bootEntry != "" {
			return b, err
		}
		fmt.Fprintf(os.Stderr, "vmm: %v: booting the default guest\n", err)
		if err := f.takeDefault(ctx); err != nil {
			return nil, err
		}
		if f.kernel != "" {
			return f.givenKernel(ctx, guest)
		}
	}
	return f.defaultGuest(ctx, guest)
}

// givenKernel is a kernel that the user names, or Debian's.
func (f *runFlags) givenKernel(ctx context.Context, guest *guestinit.Config) (*boot, error) {
	kernel, err := bootloader.Open(f.kernel)
	b := &boot{kernel: kernel}
	if err != nil || !f.sandbox() && f.modules == "" {
		return b, err
	}
	// A command's standard error is its own, where it goes to a file.
	if f.stock && (!f.sandbox() || term.IsTerminal(int(os.Stderr.Fd()))) {
		fmt.Fprintln(os.Stderr, "vmm: this is Debian's own kernel; vmm setup builds one, in some minutes, that boots faster")
	}
	builder, finish := setupBuilder()
	defer finish()
	f.addTerminal(b)
	return b, f.addInit(ctx, builder, b, guest)
}

// defaultGuest is the slim kernel, with the initial RAM disk unless there is a
// root disk.
func (f *runFlags) defaultGuest(ctx context.Context, guest *guestinit.Config) (*boot, error) {
	builder, finish := setupBuilder()
	slim, err := builder.SlimKernel(ctx)
	if err != nil {
		return nil, err
	}
	b := &boot{symbols: slim.SystemMap}
	if f.rootfs == "" {
		if err := f.addInit(ctx, builder, b, guest); err != nil {
			return nil, err
		}
	}
	finish()
	f.addTerminal(b)
	b.kernel, err = bootloader.Open(slim.Image)
	return b, err
}

// addTerminal tells the guest's init of this terminal.
func (f *runFlags) addTerminal(b *boot) {
	if t := terminalArgs(f.terminal == "serial"); t != "" && f.console == "serial" {
		b.args = append(b.args, t)
	}
}

// addInit gives a guest the default initial RAM disk, with what its init is to do.
func (f *runFlags) addInit(ctx context.Context, builder *guestimages.Builder, b *boot, guest *guestinit.Config) error {
	initrd, err := builder.Initramfs(ctx)
	if err != nil {
		return err
	}
	guest.NoAgent, guest.AgentOnly = f.noAgent, f.sandbox()
	guest.WaitNetwork = guest.AgentOnly && (len(f.nets) == 0 || strings.HasPrefix(f.nets[0], "user"))
	if f.rootfs != "" {
		guest.Root = &guestinit.Root{Disk: rootDevice, Boot: true}
	}
	var files []cpio.Record
	if f.modules != "" {
		if files, guest.Modules, err = guestimages.Modules(f.modules); err != nil {
			return fmt.Errorf("--modules: %w", err)
		}
	}
	now := *guest
	if guest.AgentOnly {
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
	b.args = append(b.args, guestinit.HostnameArg+f.name, "quiet")
	return nil
}

// machineConfig reads the kernel and the initial RAM disks.
func (f *runFlags) machineConfig(ctx context.Context, disks *diskSet, guest *guestinit.Config) (*machine.Config, string, error) {
	b, err := f.chooseBoot(ctx, disks, guest)
	if err != nil {
		return nil, "", err
	}
	// The user's come last, where they win if the kernel takes the last.
	args := b.args
	if f.rootfs != "" {
		args = append(args, rootArgs)
	}
	if f.terminal == "virtio" {
		args = append(args, "console=hvc0")
	}
	args = append(args, f.args...)
	for _, path := range f.initrds {
		initrd, err := os.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		b.initrds = append(b.initrds, initrd)
	}
	return &machine.Config{
		CPUs: f.cpus, Memory: uint64(f.memory), HugePages: f.hugePages, Nested: f.nested, Kernel: b.kernel,
		Initrd: bootloader.JoinInitrds(b.initrds...), Cmdline: strings.Join(args, " "),
		Protocol:  bootloader.Protocol(f.protocol),
		Transport: machine.Transport(f.transport),
	}, b.symbols, nil
}
