package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmm/internal/paths"
	"vmm/vm"
	"vmm/vm/api"
)

func migrateCommand() *cobra.Command {
	var req api.MigrateRequest
	cmd := &cobra.Command{
		Use: "migrate [flags] VM ADDRESS", Short: "Move a running VM to a vmm receive, here or on another host", Args: cobra.ExactArgs(2),
		Long: "migrate moves a VM while it runs: its memory is sent again and again until little is left to\n" +
			"send, and only then it stands still for a moment. Its disks and shared directories must be there,\n" +
			"by the same paths, at the other side. If anything fails, or on Ctrl-C, it goes on here.\n\n" +
			"ADDRESS is tcp://HOST:PORT, with the --key that vmm receive has printed, or unix:PATH.",
		RunE: func(cmd *cobra.Command, args []string) error {
			origin, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			if req.Key == "" {
				req.Key = os.Getenv(keyEnv)
			}
			network, path, err := vm.SplitAddress(args[1])
			if err != nil {
				return &exitError{statusUsage, err}
			}
			if req.Address = args[1]; network == "unix" {
				if path, err = paths.Abs(path); err != nil {
					return failed(err)
				}
				req.Address = "unix:" + path
			} else if req.Key == "" {
				return &exitError{statusUsage, errors.New("migrate: over TCP the --key is needed that vmm receive has printed")}
			}
			result, err := askMigrate(cmd.Context(), origin, req)
			if err != nil {
				return failed(advise(err))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has moved: %d MiB in %d rounds, it stood still for %v\n",
				origin.Name, result.Sent>>20, result.Rounds, result.Downtime.Round(time.Millisecond))
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&req.Key, "key", "", "the `KEY` that vmm receive has printed; or the environment variable "+keyEnv)
	fl.DurationVar(&req.Downtime, "downtime", vm.DefaultDowntime, "how long the guest may stand still: `DURATION`")
	return cmd
}

// askMigrate has a VM moved, and shows how far that is. The process of a VM in a
// jail uses a connection that is made here.
func askMigrate(ctx context.Context, origin api.VM, req api.MigrateRequest) (*api.MigrateResult, error) {
	bar := newProgress("moving")
	defer bar.end()
	result, err := ask(origin).Migrate(ctx, req, bar.of)
	if !errors.Is(err, api.ErrConfined) {
		return result, err
	}
	conn, err := vm.Dial(ctx, req.Address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := conn.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ask(origin).MigrateOver(ctx, req, f, bar.of)
}

// keyEnv is where a key need not be seen in a list of processes.
const keyEnv = "VMM_KEY"
