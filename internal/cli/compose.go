package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/internal/compose"
	"vmm/internal/visible"
	"vmm/storage/volume"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// composeFlags are those of vmm up and vmm down.
type composeFlags struct{ compose.Options }

func (f *composeFlags) add(fl *pflag.FlagSet) {
	fl.StringArrayVarP(&f.Files, "file", "f", nil, "the compose `FILE`; several are read one over the other, - is standard input; compose.yaml of this directory, or of one above it, if not given")
	fl.StringVarP(&f.Name, "project-name", "p", "", "the project's `NAME`, which its VMs' names begin with; the directory's if not given")
	fl.StringVar(&f.Dir, "project-directory", "", "the `DIRECTORY` that paths in the file are from; the file's if not given")
	fl.StringArrayVar(&f.EnvFiles, "env-file", nil, "take what stands for variables in the file from `FILE`, in the place of .env")
	fl.StringArrayVar(&f.Profiles, "profile", nil, "also the services of a `PROFILE`; several are possible")
}

// load reads the files, and says what of them has no effect.
func (f *composeFlags) load(cmd *cobra.Command, warn bool) (*compose.Project, error) {
	f.Input = cmd.InOrStdin()
	p, err := compose.Load(cmd.Context(), f.Options)
	if err != nil {
		return nil, &exitError{statusUsage, err}
	}
	for _, w := range p.Warnings {
		if warn {
			fmt.Fprintln(os.Stderr, "vmm:", visible.Line(w))
		}
	}
	return p, nil
}

// upCommand is vmm up.
func upCommand() *cobra.Command {
	var f composeFlags
	var detach bool
	cmd := &cobra.Command{
		Use: "up [flags] [SERVICE...]", Short: "Run the services of a compose file, each in a VM",
		Long: "up starts what a compose file describes, or some services of it and those that they depend on, and shows what\n" +
			"they say, until they have ended or Ctrl-C stops them. What runs already stays as it is. What in the file has no effect\n" +
			"here is said, by its line (see docs/compose.md).",
		Example: "  vmm up\n  vmm up -d -f compose.yaml web",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := f.load(cmd, true)
			if err != nil {
				return err
			}
			u, err := newUp(cmd.Context(), p, args)
			if err != nil {
				return err
			}
			if err := u.start(cmd.Context(), cmd.OutOrStdout()); err != nil || detach {
				return failed(err)
			}
			return failed(u.follow(cmd.Context(), cmd.OutOrStdout()))
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return when they run")
	return cmd
}

// downCommand is vmm down.
func downCommand() *cobra.Command {
	var f composeFlags
	var volumes bool
	var seconds int
	cmd := &cobra.Command{
		Use: "down [flags]", Short: "Stop and remove the VMs of a compose file", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Profiles = []string{"*"}
			p, err := f.load(cmd, false)
			if err != nil {
				return err
			}
			timeout := ownTimeout
			if cmd.Flags().Changed("timeout") {
				timeout = time.Duration(seconds) * time.Second
			}
			return failed(down(cmd.Context(), cmd.OutOrStdout(), p, timeout, volumes))
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove the file's volumes too, with what is in them")
	cmd.Flags().IntVarP(&seconds, "timeout", "t", 0, "`SECONDS` until a VM is ended that does not shut down; what the file says, or 10, if not given")
	return cmd
}

// up is services that are being started.
type up struct {
	services []*service // in the order in which they start
}

// newUp makes ready what is to be started: images, volumes and all that a VM is made of.
func newUp(ctx context.Context, p *compose.Project, names []string) (*up, error) {
	list, err := p.With(names)
	if err != nil {
		return nil, &exitError{statusUsage, err}
	}
	if len(list) == 0 {
		return nil, usage("%s: no services", p.Name)
	}
	u := &up{}
	for i := range list {
		s := &service{ServiceConfig: &list[i], vm: p.VM(&list[i])}
		now, err := registry.User().Look(s.vm)
		if err == nil && !belongs(&now, p, s.ServiceConfig) {
			return nil, failed(fmt.Errorf("services.%s: there is a VM %q that is not this service's: vmm rm it, or give the service another container_name", s.Name, s.vm))
		}
		if err == nil && now.State != api.Exited {
			s.running = true
		} else if s.session, err = newServiceSession(ctx, p, s.ServiceConfig); err != nil {
			return nil, inService(s.Name, err)
		}
		u.services = append(u.services, s)
	}
	return u, nil
}

// service is one that is being started.
type service struct {
	*types.ServiceConfig
	vm      string
	running bool
	session *session
}

// inService is an error about a service, which keeps its exit status.
func inService(name string, err error) error {
	var exit *exitError
	if errors.As(err, &exit) && exit.err != nil {
		return &exitError{exit.status, fmt.Errorf("services.%s: %w", name, exit.err)}
	}
	return fmt.Errorf("services.%s: %w", name, err)
}

// belongs reports whether a VM is a service's, and not only has its name.
func belongs(now *api.VM, p *compose.Project, s *types.ServiceConfig) bool {
	return now.Labels[projectLabel] == p.Name && now.Labels[serviceLabel] == s.Name
}

// start starts the services, each when what it depends on is as it wants it.
func (u *up) start(ctx context.Context, out io.Writer) error {
	for _, s := range u.services {
		for _, on := range u.dependencies(s) {
			condition := s.DependsOn[on.Name].Condition
			if err := on.await(ctx, condition); err != nil {
				return fmt.Errorf("%s waits for %s: %w", s.Name, on.Name, err)
			}
		}
		if s.running {
			fmt.Fprintln(out, s.vm, "is running")
			continue
		}
		if _, err := registry.User().Look(s.vm); err == nil { // of before
			if err := registry.User().Remove(s.vm); err != nil {
				return err
			}
		}
		if _, err := s.session.detach(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		s.running = true
		fmt.Fprintln(out, s.vm, "started")
	}
	return nil
}

// dependencies are the services that one depends on, in order.
func (u *up) dependencies(s *service) []*service {
	var out []*service
	for _, other := range u.services {
		if _, ok := s.DependsOn[other.Name]; ok {
			out = append(out, other)
		}
	}
	return out
}

// follow shows what the services say until all have ended, or stops them when ctx ends.
func (u *up) follow(ctx context.Context, out io.Writer) error {
	width := 0
	for _, s := range u.services {
		width = max(width, len(s.Name))
	}
	var lines sync.Mutex
	var group sync.WaitGroup
	for _, s := range u.services {
		now, err := registry.User().Look(s.vm)
		if err != nil {
			continue // it has ended, and was removed
		}
		group.Go(func() {
			w := &prefixed{print: func(line string) {
				lines.Lock()
				defer lines.Unlock()
				io.WriteString(out, line)
			}, prefix: fmt.Sprintf("%-*s | ", width, s.Name)}
			showLog(ctx, w, now, registry.User().OutputLog(s.vm), allLines, true)
			w.end()
		})
	}
	group.Wait()
	if ctx.Err() == nil {
		return u.outcome()
	}
	var errs []error
	for _, s := range slices.Backward(u.services) {
		errs = append(errs, stopVM(context.WithoutCancel(ctx), s.vm, ownTimeout))
	}
	return errors.Join(errs...)
}

// outcome is the exit status of the first service that has failed.
func (u *up) outcome() error {
	for _, s := range u.services {
		if now, err := registry.User().Look(s.vm); err == nil && now.Status != nil && *now.Status != 0 {
			return &exitError{*now.Status, fmt.Errorf("%s ended with status %d", s.Name, *now.Status)}
		}
	}
	return nil
}

// down stops and removes the VMs of a project, those first that depend on others.
func down(ctx context.Context, out io.Writer, p *compose.Project, timeout time.Duration, volumes bool) error {
	var errs []error
	for _, s := range slices.Backward(p.Order) {
		name := p.VM(&s)
		now, err := registry.User().Look(name)
		if err != nil || !belongs(&now, p, &s) {
			continue // it is not there
		}
		if now.State != api.Exited {
			err = stopVM(ctx, name, timeout)
		}
		if err == nil {
			if _, bad := registry.User().Look(name); bad == nil {
				err = registry.User().Remove(name)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(out, name, "removed")
	}
	if err := errors.Join(errs...); err != nil || !volumes {
		return err
	}
	store, err := volume.Open()
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(p.Volumes)) {
		if p.Volumes[key].External {
			continue
		}
		name := volumeName(p, key)
		switch err := store.Remove(name); {
		case errors.Is(err, volume.ErrNotFound):
		case err != nil:
			errs = append(errs, err)
		default:
			fmt.Fprintln(out, name, "removed")
		}
	}
	return errors.Join(errs...)
}

// volumeName is the name of a project's volume.
func volumeName(p *compose.Project, key string) string {
	if v := p.Volumes[key]; v.Name != "" {
		return v.Name
	}
	return strings.Join([]string{p.Name, key}, "_")
}
