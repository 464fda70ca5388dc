package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmm/machine/migration"
)

// receiveFlags are the flags of vmm receive.
type receiveFlags struct {
	run     *runFlags
	keyFile string
}

func receiveCommand() *cobra.Command {
	f := &receiveFlags{run: newRunFlags()}
	cmd := &cobra.Command{
		Use: "receive [flags] ADDRESS", Short: "Wait for a VM that vmm migrate moves here", Args: cobra.ExactArgs(1),
		Long: "receive waits for one VM and runs it. ADDRESS is tcp://HOST:PORT, of this host, or unix:PATH. Over\n" +
			"TCP everything is encrypted, and a key is printed without which nobody can send a VM.",
		Example: "  vmm receive -d tcp://0.0.0.0:4444\n  vmm receive unix:/tmp/there",
		RunE: func(cmd *cobra.Command, args []string) error {
			f.run.named = cmd.Flags().Changed("name")
			f.run.consoleGiven = cmd.Flags().Changed("console")
			return f.start(cmd, args[0])
		},
	}
	f.run.addRestore(cmd.Flags())
	cmd.Flags().StringVar(&f.keyFile, "key-file", "", "write the key to `FILE` too")
	return cmd
}

func (f *receiveFlags) start(cmd *cobra.Command, address string) error {
	network, addr, err := splitAddress(address)
	if err != nil {
		return &exitError{statusUsage, err}
	}
	if f.run.detach && !isDetached() {
		return detach(cmd.OutOrStdout())
	}
	d, err := f.accept(cmd.Context(), network, addr)
	if err != nil {
		return failed(err)
	}
	defer d.Close()
	if err := d.Receive(); err != nil {
		return failed(fmt.Errorf("receiving a VM: %w", err))
	}
	r := &restored{state: d.Final.State, received: d.Memory, moved: true}
	r.confirm = d.Ready
	if err = json.Unmarshal(d.Final.Config, &r.vm); err == nil {
		if err = r.take(f.run); err == nil {
			err = f.run.start(cmd.Context(), cmd.OutOrStdout())
		}
	}
	if err != nil && !r.confirmed {
		d.Refuse(err)
	}
	return failed(err)
}

// accept waits for a source that knows the key.
func (f *receiveFlags) accept(ctx context.Context, network, addr string) (*migration.Destination, error) {
	var l net.Listener
	var err error
	token := ""
	if network == "unix" {
		var u *net.UnixListener
		if u, err = listenUnix(addr); err == nil {
			err = os.Chmod(addr, 0o600)
			l = u
		}
	} else {
		var config *tls.Config
		var key *peerKey
		if config, key, err = newPeer(); err != nil {
			return nil, err
		}
		if l, err = tls.Listen(network, addr, config); err == nil {
			token = key.token()
			fmt.Fprintf(os.Stderr, "vmm: waiting for: vmm migrate VM tcp://%s --key %s\n", l.Addr(), key)
			if f.keyFile != "" {
				err = os.WriteFile(f.keyFile, []byte(key.String()+"\n"), 0o600)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("receiving: %w", err)
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // too many open files, which may pass
			continue
		}
		d, err := migration.Accept(c, token)
		if err == nil {
			return d, nil
		}
		fmt.Fprintf(os.Stderr, "vmm: refused a VM from %v: %v\n", c.RemoteAddr(), err)
	}
}
