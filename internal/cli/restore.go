package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/machine"
	"vmm/vm"
	"vmm/vm/spec"
)

// restoreFlags are the flags of commands that go on with a VM.
type restoreFlags struct {
	sessionFlags
	name, vsock          string
	trust                bool
	nets, publish, ports []string
}

// add makes the flags.
func (f *restoreFlags) add(fl *pflag.FlagSet) {
	fl.SortFlags = false
	f.sessionFlags.add(fl)
	fl.StringVar(&f.name, "name", "", "the VM's `NAME`; that of the saved one if not given")
	fl.StringArrayVar(&f.nets, "net", nil, "networks in the place of the saved ones, as with vmm run")
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "publish ports, as with vmm run, in the place of the saved ones")
	fl.StringArrayVar(&f.ports, "port", nil, "where a virtio-serial port leads, in the place of where it led: `NAME=FILE`, NAME=unix:PATH or NAME=none")
	fl.StringVar(&f.vsock, "vsock", "", vsockUsage)
	fl.BoolVar(&f.trust, "trust", false, "open what the saved VM says, also if it was not saved by you on this host")
}

// session is what the flags mean, but for where the VM comes from.
func (f *restoreFlags) session(fl *pflag.FlagSet) (s *session, o vm.RestoreOptions, err error) {
	s = &session{Named: fl.Changed("name")}
	if f.name != "" {
		if err := checkName("--name", f.name); err != nil {
			return nil, o, err
		}
	}
	o = vm.RestoreOptions{Name: f.name, Vsock: f.vsock, Trust: f.trust, Engine: machine.Engine(f.engine)}
	if o.Console, err = f.sessionFlags.fill(s, fl, vm.Endpoint{}); err != nil {
		return nil, o, err
	}
	var limits vm.Limits
	given, err := f.limits.fill(fl, &limits)
	if given {
		o.Limits = &limits
	}
	return s, o, errors.Join(err,
		read(fl, "net", f.nets, spec.Net, (*[]vm.Net)(&o.Nets)),
		readPublish(fl, f.publish, &o.Publish),
		read(fl, "port", f.ports, spec.Port, &o.Ports))
}

// restoreJob is a VM that goes on from a snapshot.
type restoreJob struct {
	Dir     string
	Options vm.RestoreOptions
}

// open makes the VM; its name is claimed on the way.
func (r *restoreJob) open(s *session) (*vm.VM, error) {
	bar := newProgress("unpacking")
	defer bar.end()
	o := r.Options
	o.Progress, o.Configure = bar.show, s.configure
	return vm.Restore(r.Dir, o)
}

// configure claims the name of a VM that goes on, once it is known.
func (s *session) configure(c *vm.Config) (_ []vm.Option, err error) {
	if c.Name, err = s.claim(c); err != nil {
		return nil, err
	}
	return s.options(), nil
}

func restoreCommand() *cobra.Command {
	f := &restoreFlags{}
	var job restoreJob
	count := 1
	cmd := &cobra.Command{
		Use: "restore [flags] DIR", Short: "Go on with a saved VM", Args: cobra.ExactArgs(1),
		Long: "restore makes a VM that goes on where the saved one was. Its memory is mapped from the\n" +
			"snapshot and comes in when it is used; neither the snapshot nor its disks are changed.\n\n" +
			"Under another name it is a copy: its guest gets a name, a machine ID, addresses and random\n" +
			"numbers of its own.",
		Example: "  vmm restore saved\n  vmm restore -d --count 10 saved\n  vmm restore -d --name test --publish 8080:80 saved",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, o, err := f.session(cmd.Flags())
			if err != nil {
				return err
			}
			o.Copy, o.Verify, o.Prefetch, o.Overlays = job.Options.Copy, job.Options.Verify, job.Options.Prefetch, job.Options.Overlays
			s.Restore = &restoreJob{args[0], o}
			if count != 1 {
				return s.startMany(cmd.Context(), cmd.OutOrStdout(), count)
			}
			return s.start(cmd.Context(), cmd.OutOrStdout())
		},
	}
	fl := cmd.Flags()
	f.add(fl)
	fl.IntVar(&count, "count", 1, "make a `NUMBER` of VMs in the background, called NAME-1, NAME-2, ...")
	fl.BoolVar(&job.Options.Copy, "copy", false, "make it another one than the saved VM, also under the same name")
	fl.BoolVar(&job.Options.Verify, "verify", false, "compare all checksums, also of files that have not been touched since they were written")
	fl.BoolVar(&job.Options.Prefetch, "prefetch", false, "read the memory ahead that the last restore with --prefetch has used")
	fl.StringVar(&job.Options.Overlays, "disk-overlay", "", "keep what the guest writes to its disks in `DIRECTORY`; without it, it is gone with the VM")
	return cmd
}

// startMany makes copies in the background, in processes of their own.
func (s *session) startMany(ctx context.Context, out io.Writer, count int) error {
	o := s.Restore.Options
	if count < 1 || count > 1000 {
		return usage("--count %d: between 1 and 1000", count)
	}
	if o.Overlays != "" || len(o.Publish) > 0 {
		return usage("--count goes without --publish and --disk-overlay, which only one VM can have")
	}
	base := o.Name
	if base == "" {
		c, err := vm.SavedConfig(s.Restore.Dir)
		if err != nil {
			return failed(err)
		}
		base = c.Name
	}
	for n := range count {
		o.Verify = o.Verify && n == 0
		name := fmt.Sprintf("%s-%d", base, n+1)
		if err := restoreCopy(ctx, s.Restore.Dir, name, s.Remove, s.Jail, o); err != nil {
			return failed(err)
		}
		fmt.Fprintln(out, name)
	}
	return nil
}

// restoreCopy restores a copy in the background, in a process of its own.
func restoreCopy(ctx context.Context, dir, name string, remove bool, jail vm.JailLevel, o vm.RestoreOptions) error {
	o.Name, o.Copy = name, true
	s := &session{Restore: &restoreJob{dir, o}, Named: true, Detach: true, Remove: remove, Jail: jail}
	_, err := s.detach(ctx)
	return err
}
