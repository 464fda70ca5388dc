package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/spf13/cobra"

	"vmm/internal/output"
	"vmm/internal/paths"
	"vmm/machine/snapshot"
	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/client"
	"vmm/vm/registry"
)

func snapshotCommand() *cobra.Command {
	var req api.SnapshotRequest
	cmd := &cobra.Command{
		Use: "snapshot [flags] VM DIR", Short: "Save a running VM, to be restored later", Args: cobra.ExactArgs(2),
		Long: "snapshot saves a VM as it is now: its CPUs, devices and memory. The VM stands still meanwhile\n" +
			"and goes on. Its disks belong to the snapshot as they are: what the VM writes from then on goes\n" +
			"to new files beside them, which are printed.",
		Example: "  vmm snapshot dev saved\n  vmm snapshot --diff saved dev saved-2\n  vmm restore saved",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			if req.Dir, err = paths.Abs(args[1]); err == nil && req.Parent != "" {
				req.Parent, err = paths.Abs(req.Parent)
			}
			if err != nil {
				return failed(err)
			}
			result, err := askSnapshot(cmd.Context(), vm, req)
			if err != nil {
				return failed(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), killTime)
			defer cancel()
			if req.Stop && registry.User().WaitEnded(ctx, vm) != nil {
				return failed(fmt.Errorf("VM %q is saved, but does not end: kill -9 %d", vm.Name, vm.PID))
			}
			for from, to := range result.Disks {
				fmt.Fprintf(cmd.OutOrStdout(), "%s belongs to the snapshot; the VM goes on in %s\n", from, to)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&req.Parent, "diff", "", "save only the memory that has changed since the snapshot `DIR`, which this one needs from then on")
	fl.BoolVar(&req.Zstd, "zstd", false, "compress the memory; restoring it takes longer")
	fl.BoolVar(&req.DiskCopy, "disk-copy", false, "copy the disks into the snapshot, which needs no other files then")
	fl.BoolVar(&req.Replace, "replace", false, "replace a snapshot of that name")
	fl.BoolVar(&req.Stop, "stop", false, "end the VM when it is saved")
	return cmd
}

// askSnapshot has a VM saved, and shows how far that is. The VM's process is in a jail: it
// writes to files that are made here.
func askSnapshot(ctx context.Context, of api.VM, req api.SnapshotRequest) (*api.SnapshotResult, error) {
	now, err := ask(of).Inspect(ctx)
	if err != nil {
		return nil, advise(err)
	}
	if req.Parent != "" {
		m, err := snapshot.ReadManifest(req.Parent)
		if err != nil {
			return nil, &snapshot.Error{Dir: req.Parent, Err: err}
		}
		req.ParentID = m.ID
	}
	// What is signed there must not be exchanged before.
	if _, err := output.Place(req.Dir, guestWritable(ctx)); err != nil {
		return nil, err
	}
	place, err := snapshot.NewPlace(req.Dir, req.Replace)
	if err != nil {
		return nil, err
	}
	files, err := place.CreateAll(len(now.Disks)+1, req.Zstd) // a root is not among them
	if err != nil {
		place.Abort()
		return nil, err
	}
	all := maps.Clone(files)
	overlays, err := makeOverlays(now.PinnedDisks, &req, all)
	defer func() {
		for _, o := range overlays {
			o.Close()
		}
	}()
	if err != nil {
		place.Abort()
		return nil, err
	}
	bar := newProgress("saving")
	defer bar.end()
	if req.Stop { // the VM may have ended already, and be nowhere but in these files
		ctx = context.WithoutCancel(ctx)
	}
	result, err := ask(of).SnapshotTo(ctx, req, all, bar.of)
	for _, f := range files {
		f.Close()
	}
	if req.Stop && errors.Is(err, api.ErrNotRunning) && place.Publish() == nil {
		return &api.SnapshotResult{}, nil // it was saved, and ended before it could say so
	}
	if err != nil {
		place.Abort()
		return nil, advise(err)
	}
	return result, place.Publish()
}

// guestWritable are the directories that guests of the user's VMs can write to, as far as these answer.
func guestWritable(ctx context.Context) (dirs []string) {
	vms, err := registry.User().List()
	if err != nil {
		return nil
	}
	askState(ctx, vms)
	for _, vm := range vms {
		dirs = append(dirs, vm.GuestWritable...)
	}
	return dirs
}

// makeOverlays makes the overlays that the VM needs for its disks, and puts them into the
// request and its files.
func makeOverlays(disks []string, req *api.SnapshotRequest, files map[string]*os.File) (made []*vm.Overlay, err error) {
	if req.DiskCopy || req.Stop {
		return nil, nil
	}
	req.Overlays = map[string]string{}
	for _, disk := range disks {
		o, err := vm.NewOverlay(disk)
		if err != nil {
			return made, fmt.Errorf("an overlay of the disk %s: %w", disk, err)
		}
		made = append(made, o)
		req.Overlays[disk] = o.Path
		files[o.Path], files[o.Path+api.DirectSuffix] = o.File, o.Direct
	}
	return made, nil
}

// pauseCommand is vmm pause, or vmm resume.
func pauseCommand(use, short string, do func(*client.Client, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " VM...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(cmd, args, func(ctx context.Context, name string) error {
				vm, err := findRunning(ctx, name)
				if err != nil {
					return err
				}
				if err := do(ask(vm), ctx); err != nil {
					return fmt.Errorf("VM %q: %w", vm.Name, err)
				}
				return nil
			})
		},
	}
}
