package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
)

const attachHelp = "\r\nCtrl-a d  detach: the VM goes on\r\nCtrl-a p  press the power button: the guest shuts down\r\n" +
	"Ctrl-a x  quit: end the VM at once\r\nCtrl-a h  this help\r\nCtrl-a Ctrl-a  send Ctrl-a to the guest\r\n"

// attachCommand is vmm attach.
func attachCommand() *cobra.Command {
	return &cobra.Command{
		Use: "attach VM", Short: "Connect this terminal to the console of a VM in the background", Args: cobra.ExactArgs(1),
		Long: "attach connects this terminal to the guest's console. Ctrl-a d leaves it, Ctrl-a h shows the\nother keys.",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(cmd.Context(), args[0])
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
