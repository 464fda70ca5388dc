package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"vmm/internal/output"
	"vmm/vm"
)

// receiveJob is a VM that another process sends here.
type receiveJob struct {
	Address string
	KeyFile string
	Options vm.RestoreOptions
}

// open waits for the VM.
func (r *receiveJob) open(ctx context.Context, s *session) (*vm.VM, error) {
	if err := s.limitReceived(r.Options.Limits); err != nil {
		return nil, err
	}
	l, key, err := vm.Listen(r.Address, s.log)
	if err != nil {
		return nil, fmt.Errorf("receiving: %w", err)
	}
	defer l.Close()
	if key != "" {
		fmt.Fprintf(os.Stderr, "vmm: waiting for: vmm migrate VM tcp://%s --key %s\n", l.Addr(), key)
		if r.KeyFile != "" {
			f, err := output.Open(r.KeyFile, output.Private, nil)
			if err == nil {
				err = errors.Join(f.Replace([]byte(key+"\n")), f.Close())
			}
			if err != nil {
				return nil, fmt.Errorf("--key-file: %w", err)
			}
		}
	}
	o := r.Options
	o.Configure = s.configure
	return l.Receive(ctx, o)
}

func receiveCommand() *cobra.Command {
	f := &restoreFlags{}
	keyFile := ""
	cmd := &cobra.Command{
		Use: "receive [flags] ADDRESS", Short: "Wait for a VM that vmm migrate moves here", Args: cobra.ExactArgs(1),
		Long: "receive waits for one VM and runs it. ADDRESS is tcp://HOST:PORT, of this host, or unix:PATH. Over\n" +
			"TCP everything is encrypted, and a key is printed without which nobody can send a VM.",
		Example: "  vmm receive -d tcp://0.0.0.0:4444\n  vmm receive unix:/tmp/there",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, o, err := f.session(cmd.Flags())
			if err != nil {
				return err
			}
			if _, _, err := vm.SplitAddress(args[0]); err != nil {
				return &exitError{statusUsage, err}
			}
			s.Receive = &receiveJob{args[0], keyFile, o}
			return s.start(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&keyFile, "key-file", "", "write the key to `FILE` too")
	return cmd
}
