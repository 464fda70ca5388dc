package vm

import (
	"errors"
	"io"
	"path/filepath"

	guestimages "vmm/guest-images"
	"vmm/virtio"
)

// options are what a VM has of this process, which no Config can hold.
type options struct {
	in      io.Reader
	out     io.Writer
	log     func(error)
	builder *guestimages.Builder
	devices []virtio.Device
	// initArgs are arguments for the default guest's init, as the kernel passes them on.
	initArgs []string
	capture  string
	runtime  string
	notes    string
	group    *Group
	confine  func() Confinement // that Confine will be asked for
	volumes  bool               // the guest looks for logical volumes on its disks
}

// Option is something that a VM gets of this process.
type Option func(*options)

// WithConsole connects the guest's console: out takes what the guest says, and in (which
// may be nil) is read for it until it ends. A write to out that blocks holds the guest up.
func WithConsole(in io.Reader, out io.Writer) Option {
	return func(o *options) { o.in, o.out = in, out }
}

// WithLog has log told what a user should know while the VM runs: a full disk, a driver
// that does wrong. It must not block.
func WithLog(log func(error)) Option { return func(o *options) { o.log = log } }

// WithBuilder makes or fetches the default guest with b, which can show how far it is.
func WithBuilder(b *guestimages.Builder) Option { return func(o *options) { o.builder = b } }

// WithDevice adds a virtio device, behind those of the Config. It is the VM's from then on,
// which closes it; New, Restore, Clone and Receive have closed it if they return an error. A VM that
// is restored needs one of the same kind, which its saved state is loaded into.
func WithDevice(d virtio.Device) Option {
	return func(o *options) { o.devices = append(o.devices, d) }
}

// WithInitArgs passes arguments on to the init of the default guest, such as TERM=xterm.
func WithInitArgs(args ...string) Option {
	return func(o *options) { o.initArgs = append(o.initArgs, args...) }
}

// WithCapture writes what crosses the guest's networks to a file, as pcapng.
func WithCapture(path string) Option { return func(o *options) { o.capture = path } }

// WithRuntimeDir names the directory where the VMs of a Switch meet.
func WithRuntimeDir(dir string) Option { return func(o *options) { o.runtime = dir } }

// WithGroup says that this process is in a group which has the Config's Limits. Confine
// lets it leave it.
func WithGroup(g *Group) Option { return func(o *options) { o.group = g } }

// WithConfinement says that Confine will follow, with what c returns: Prepare begins with what takes time of
// that, beside its own work. Where it is asked for something else, Confine takes longer.
func WithConfinement(c func() Confinement) Option { return func(o *options) { o.confine = c } }

func newOptions(list []Option) *options {
	o := &options{log: func(error) {}, builder: &guestimages.Builder{Log: io.Discard}}
	o.notes = HostNotes()
	o.set(list)
	return o
}

// HostNotes is the file in which VMs note what kind of host this is, so that not each has to
// find out; "" where there is no place for it.
func HostNotes() string {
	cache, err := guestimages.CacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "host")
}

func (o *options) set(list []Option) {
	for _, set := range list {
		set(o)
	}
	if o.log == nil {
		o.log = func(error) {}
	}
}

// close closes the devices that no VM has made its own yet.
func (o *options) close() error {
	var errs []error
	for _, d := range o.devices {
		errs = append(errs, d.Close())
	}
	o.devices = nil
	return errors.Join(errs...)
}

// abandon is close where an error is to be returned.
func (o *options) abandon(err *error) {
	if *err != nil {
		*err = errors.Join(*err, o.close())
	}
}
