package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/machine/snapshot"
)

// restoreFlags are the flags of vmm restore.
type restoreFlags struct {
	run      *runFlags
	count    int
	verify   bool
	prefetch bool
	overlays string
	asCopy   bool
}

func restoreCommand() *cobra.Command {
	f := &restoreFlags{run: newRunFlags()}
	r := f.run
	cmd := &cobra.Command{
		Use: "restore [flags] DIR", Short: "Go on with a saved VM", Args: cobra.ExactArgs(1),
		Long: "restore makes a VM that goes on where the saved one was. Its memory is mapped from the\n" +
			"snapshot and comes in when it is used; neither the snapshot nor its disks are changed.\n\n" +
			"Under another name it is a copy: its guest gets a name, a machine ID, addresses and random\n" +
			"numbers of its own.",
		Example: "  vmm restore saved\n  vmm restore -d --count 10 saved\n  vmm restore -d --name test --publish 8080:80 saved",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.named = cmd.Flags().Changed("name")
			r.consoleGiven = cmd.Flags().Changed("console")
			return f.start(cmd, args[0])
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	r.addRestore(fl)
	fl.IntVar(&f.count, "count", 1, "make a `NUMBER` of VMs in the background, called NAME-1, NAME-2, ...")
	fl.BoolVar(&f.asCopy, "copy", false, "make it another one than the saved VM, also under the same name")
	fl.BoolVar(&f.verify, "verify", false, "compare all checksums, also of files that have not been touched since they were written")
	fl.BoolVar(&f.prefetch, "prefetch", false, "read the memory ahead that the last restore with --prefetch has used")
	fl.StringVar(&f.overlays, "disk-overlay", "", "keep what the guest writes to its disks in `DIRECTORY`; without it, it is gone with the VM")
	return cmd
}

// addRestore makes the flags of commands that go on with a VM.
func (r *runFlags) addRestore(fl *pflag.FlagSet) {
	fl.SortFlags = false
	fl.BoolVarP(&r.detach, "detach", "d", false, "run the VM in the background, and print its name")
	fl.BoolVar(&r.remove, "rm", false, "with -d: remove the VM from the list when it has ended")
	fl.StringVar(&r.name, "name", "", "the VM's `NAME`; that of the saved one if not given")
	fl.StringArrayVar(&r.nets, "net", nil, "networks in the place of the saved ones, as with vmm run")
	fl.StringArrayVarP(&r.publish, "publish", "p", nil, "publish ports, as with vmm run, in the place of the saved ones")
	fl.StringArrayVar(&r.ports, "port", nil, "where a virtio-serial port leads, in the place of where it led: `NAME=FILE`, NAME=unix:PATH or NAME=none")
	fl.StringVar(&r.vsock, "vsock", "", vsockUsage)
	fl.StringVar(&r.console, "console", "serial", "serial console, as with vmm run")
	fl.DurationVar(&r.timeout, "timeout", 0, "end the VM after `DURATION`")
	fl.StringVar(&r.gdb, "gdb", "", gdbUsage)
	fl.BoolVarP(&r.verbose, "verbose", "v", false, "report times and exits at the end")
}

// start restores one VM here, or has others made.
func (f *restoreFlags) start(cmd *cobra.Command, dir string) error {
	if f.count != 1 {
		return f.startMany(cmd.OutOrStdout(), dir)
	}
	if f.run.detach && !isDetached() {
		return detach(cmd.OutOrStdout())
	}
	bar := newGauge("unpacking")
	r, err := openSnapshot(dir, snapshot.Options{Verify: f.verify, Progress: bar.show})
	bar.end()
	if err != nil {
		return failed(err)
	}
	defer r.close()
	r.overlays, r.prefetch, r.copies = f.overlays, f.prefetch, f.asCopy
	if f.overlays != "" {
		if err := os.MkdirAll(f.overlays, 0o755); err != nil {
			return failed(fmt.Errorf("--disk-overlay: %w", err))
		}
	}
	if err := r.take(f.run); err != nil {
		return err
	}
	if err := checkName("--name", f.run.name); f.run.name != "" && err != nil {
		return err
	}
	return f.run.start(cmd.Context(), cmd.OutOrStdout())
}

// startMany makes copies in the background, in processes of their own.
func (f *restoreFlags) startMany(out io.Writer, dir string) error {
	if f.count < 1 || f.count > 1000 {
		return &exitError{statusUsage, fmt.Errorf("--count %d: between 1 and 1000", f.count)}
	}
	if f.overlays != "" || len(f.run.publish) > 0 {
		return &exitError{statusUsage, errors.New("--count goes without --publish and --disk-overlay, which only one VM can have")}
	}
	base := f.run.name
	if base == "" {
		r, err := openSnapshot(dir, snapshot.Options{})
		if err != nil {
			return failed(err)
		}
		base = r.vm.Name
		r.close()
	}
	for n := 1; n <= f.count; n++ {
		name := fmt.Sprintf("%s-%d", base, n)
		var flags []string
		if f.verify && n == 1 {
			flags = []string{"--verify"}
		}
		if err := restoreApart(dir, name, f.run.remove, flags...); err != nil {
			return failed(err)
		}
		fmt.Fprintln(out, name)
	}
	return nil
}
