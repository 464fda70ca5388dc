package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmm/guest-images/agent"
	"vmm/vm/api"
	"vmm/vm/client"
	"vmm/vm/registry"
)

// psCommand is vmm ps.
func psCommand() *cobra.Command {
	var all, quiet, asJSON bool
	cmd := &cobra.Command{
		Use: "ps", Short: "List VMs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			vms, err := registry.User().List()
			if err != nil {
				return failed(err)
			}
			if !quiet {
				askState(cmd.Context(), vms)
			}
			out := cmd.OutOrStdout()
			w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
			if !quiet {
				fmt.Fprintln(w, "NAME\tPID\tSTATUS\tCPUS\tMEMORY\tCOMMAND")
			}
			shown := []api.VM{}
			for _, vm := range vms {
				if vm.State != api.Running && !all {
					continue
				}
				shown = append(shown, vm)
				if quiet {
					fmt.Fprintln(w, vm.Name)
					continue
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", vm.Name, vm.PID, statusText(&vm), vm.CPUs, humanSize(int64(vm.Memory)), whatText(&vm))
			}
			if asJSON {
				return json.NewEncoder(out).Encode(shown)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only names")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	return cmd
}

// askTime is how long a VM may take to say how it does.
const askTime = 2 * time.Second

// askState has those that run say how they do. Of one that does not, the state is what
// is known of it without.
func askState(ctx context.Context, vms []api.VM) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var at []int // of those in vms
	var running []api.VM
	for i, vm := range vms {
		if vm.State == api.Running {
			at, running = append(at, i), append(running, vm)
		}
	}
	for i, a := range askAll(ctx, running, (*client.Client).Inspect) {
		if a.err == nil {
			vms[at[i]] = a.got
		}
	}
}

// statusText is the VM's state as people read it.
func statusText(vm *api.VM) string {
	if vm.State == api.Running {
		up := "up " + time.Since(vm.Started).Round(time.Second).String()
		if vm.Paused {
			return "paused (" + up + ")"
		}
		return up
	}
	how := "killed"
	if vm.Status != nil {
		how = fmt.Sprint(*vm.Status)
	}
	return fmt.Sprintf("exited (%s) %v ago", how, time.Since(vm.Ended).Round(time.Second))
}

// whatText is the command, or what boots.
func whatText(vm *api.VM) string {
	if len(vm.Command) == 0 {
		return "(" + vm.Kernel + ")"
	}
	const most = 40
	if s := strings.Join(vm.Command, " "); len(s) <= most {
		return s
	} else {
		return s[:most-1] + "…"
	}
}

// forEach does something with each of the VMs that are named, and goes on after
// errors.
func forEach(cmd *cobra.Command, names []string, do func(ctx context.Context, name string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(cmd.Context(), name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return failed(errors.Join(errs...))
}

// killTime is how long a VM's process may take to end when it is told to.
const killTime = 30 * time.Second

// killVM ends a VM at once.
func killVM(ctx context.Context, vm api.VM) error {
	err := ask(vm).Kill(ctx)
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	if registry.User().WaitEnded(ctx, vm) != nil {
		return errors.Join(fmt.Errorf("VM %q does not end: kill -9 %d", vm.Name, vm.PID), err)
	}
	return nil
}

func killCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kill VM...", Short: "End VMs at once, as pulling the plug does", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(cmd, args, func(ctx context.Context, name string) error {
				vm, err := findRunning(name)
				if err != nil {
					return err
				}
				return killVM(ctx, vm)
			})
		},
	}
}

func stopCommand() *cobra.Command {
	patience := 10
	cmd := &cobra.Command{
		Use: "stop VM...", Short: "Shut VMs down", Args: cobra.MinimumNArgs(1),
		Long: "stop asks the guest to shut down, by its agent or by the power button, and ends the VM if it\n" +
			"has not done so in time.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(cmd, args, func(ctx context.Context, name string) error {
				vm, err := findRunning(name)
				if err != nil {
					return err
				}
				if err := ask(vm).Stop(ctx); err != nil && !errors.Is(err, client.ErrGone) {
					return err
				}
				wait, cancel := context.WithTimeout(ctx, time.Duration(patience)*time.Second)
				defer cancel()
				if registry.User().WaitEnded(wait, vm) == nil {
					return nil
				}
				return killVM(ctx, vm)
			})
		},
	}
	cmd.Flags().IntVarP(&patience, "time", "t", patience, "`SECONDS` until the VM is ended")
	return cmd
}

func rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm VM...", Short: "Remove VMs that have ended from the list, with their logs", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(cmd, args, func(ctx context.Context, name string) error {
				vm, err := findVM(name)
				if err != nil {
					return err
				}
				if vm.State == api.Running {
					if !force {
						return fmt.Errorf("VM %q is running: stop it before, or rm -f", vm.Name)
					}
					if err := killVM(ctx, vm); err != nil {
						return err
					}
				}
				return registry.User().Remove(vm.Name)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end those that run")
	return cmd
}

func inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect VM...", Short: "Print all about VMs, as JSON", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out []api.VM
			for _, name := range args {
				vm, err := findVM(name)
				if err == nil && vm.State == api.Running {
					vm, err = ask(vm).Inspect(cmd.Context())
				}
				if err != nil {
					return failed(err)
				}
				out = append(out, vm)
			}
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(out)
		},
	}
}

// execCommand is vmm exec.
func execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec [flags] VM COMMAND [ARGUMENT...]", Short: "Run a command in a running VM", Args: cobra.MinimumNArgs(2),
		Long: "exec runs a command in the guest, with this process's standard streams, and ends with its\n" +
			"exit status. The guest needs vmm's agent, as vmm's own guests have it.",
		Example: "  vmm exec dev uname -a\n  vmm exec -it dev sh",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			vm, err := findRunning(args[0])
			if err != nil {
				return failed(err)
			}
			ready := func(context.Context) error { return nil }
			x := f.settings()
			status, err := runInGuest(cmd.Context(), ready, func() *agent.Client { return agentOf(vm) }, x.request(args[1:]), os.Stdout, os.Stderr)
			if err != nil {
				return failed(err)
			}
			if status != statusOK {
				return &exitError{status, nil}
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.add(cmd.Flags())
	return cmd
}

// cpCommand is vmm cp.
func cpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cp FROM TO", Short: "Copy files into or out of a running VM", Args: cobra.ExactArgs(2),
		Long: "cp copies a file or a directory. The one in the guest is written VM:PATH. What is copied to a\n" +
			"directory goes into it.",
		Example: "  vmm cp results dev:/tmp\n  vmm cp dev:/var/log .",
		RunE: func(cmd *cobra.Command, args []string) error {
			fromVM, from, fromGuest := guestPath(args[0])
			toVM, to, toGuest := guestPath(args[1])
			if fromGuest == toGuest {
				return &exitError{statusUsage, errors.New("cp: one of the two is VM:PATH")}
			}
			vm, err := findRunning(fromVM + toVM)
			if err != nil {
				return failed(err)
			}
			if toGuest {
				return failed(agentOf(vm).Put(cmd.Context(), from, to))
			}
			return failed(agentOf(vm).Get(cmd.Context(), from, to))
		},
	}
}

// guestPath splits VM:PATH.
func guestPath(s string) (vm, path string, ok bool) {
	vm, path, ok = strings.Cut(s, ":")
	if !ok || strings.Contains(vm, "/") || vm == "" {
		return "", s, false
	}
	if path == "" {
		path = "/"
	}
	return vm, path, true
}

// logsCommand is vmm logs.
func logsCommand() *cobra.Command {
	var follow, console bool
	cmd := &cobra.Command{
		Use: "logs VM", Short: "Show what a VM in the background has said", Args: cobra.ExactArgs(1),
		Long: "logs prints the output of the VM's command, or of its console if it has no command.",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findVM(args[0])
			if err != nil {
				return failed(err)
			}
			if !vm.Detached {
				return failed(fmt.Errorf("VM %q is not in the background: what it says is where it was started", vm.Name))
			}
			log := registry.User().OutputLog(vm.Name)
			if console || len(vm.Command) == 0 {
				log = registry.User().ConsoleLog(vm.Name)
			}
			return failed(showLog(cmd, vm, log, follow))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM has ended")
	cmd.Flags().BoolVar(&console, "console", false, "the console's output")
	return cmd
}

// followCheck is how often a log is looked at.
const followCheck = 100 * time.Millisecond

// showLog prints a log, and what comes, until the VM has ended.
func showLog(cmd *cobra.Command, vm api.VM, path string, follow bool) error {
	out := cmd.OutOrStdout()
	if old, err := os.Open(path + registry.OldLog); err == nil {
		_, err = io.Copy(out, old)
		if err = errors.Join(err, old.Close()); err != nil {
			return err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	for {
		now, err := registry.User().Look(vm.Name)
		if _, err := io.Copy(out, f); err != nil {
			return err
		}
		if !follow || err != nil || now.State != api.Running || !now.Started.Equal(vm.Started) {
			return nil
		}
		if next, err := os.Open(path); err == nil { // the log may have begun anew
			a, _ := f.Stat()
			b, _ := next.Stat()
			if os.SameFile(a, b) {
				next.Close()
			} else {
				io.Copy(out, f)
				f.Close()
				f = next
			}
		}
		select {
		case <-time.After(followCheck):
		case <-cmd.Context().Done():
			return nil
		}
	}
}

const attachHelp = "\r\nCtrl-a d  detach: the VM goes on\r\nCtrl-a p  press the power button: the guest shuts down\r\n" +
	"Ctrl-a x  quit: end the VM at once\r\nCtrl-a h  this help\r\nCtrl-a Ctrl-a  send Ctrl-a to the guest\r\n"

// attachCommand is vmm attach.
func attachCommand() *cobra.Command {
	return &cobra.Command{
		Use: "attach VM", Short: "Connect this terminal to the console of a VM in the background", Args: cobra.ExactArgs(1),
		Long: "attach connects this terminal to the guest's console. Ctrl-a d leaves it, Ctrl-a h shows the\nother keys.",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(args[0])
			if err != nil {
				return failed(err)
			}
			ctx, detach := context.WithCancel(cmd.Context())
			defer detach()
			conn, err := ask(vm).DialConsole(ctx)
			if err != nil {
				return failed(err)
			}
			defer conn.Close()
			term, err := stdConsole()
			if err != nil {
				return failed(err)
			}
			defer term.restore()
			term.actions = consoleActions{
				quit: func() { ask(vm).Kill(ctx) }, power: func() { ask(vm).Stop(ctx) }, detach: detach,
				help: func() { io.WriteString(term, attachHelp) },
			}
			go func() {
				io.Copy(conn, term)
				if !term.keys { // a script has said all
					detach()
				}
			}()
			ended := make(chan struct{})
			go func() {
				io.Copy(term, conn)
				close(ended)
			}()
			select {
			case <-ended:
			case <-ctx.Done():
			}
			return nil
		},
	}
}
