package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmm/internal/visible"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// logsCommand is vmm logs.
func logsCommand() *cobra.Command {
	var follow, console bool
	var tail int
	cmd := &cobra.Command{
		Use: "logs VM", Short: "Show what a VM in the background has said", Args: cobra.ExactArgs(1),
		Long: "logs prints the output of the VM's command, or of its console if it has no command. On a terminal,\n" +
			"control characters are shown and not done; elsewhere all is as it came.",
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
			return failed(showLog(cmd.Context(), cmd.OutOrStdout(), vm, log, tail, follow))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM has ended")
	cmd.Flags().IntVarP(&tail, "tail", "n", allLines, "only the last `LINES`; all if negative")
	cmd.Flags().BoolVar(&console, "console", false, "the console's output")
	return cmd
}

// followCheck is how often a log is looked at.
const followCheck = 100 * time.Millisecond

// allLines is that of a log from its beginning on.
const allLines = -1

// showLog prints the last lines of a log, and what comes, until the VM has ended.
func showLog(ctx context.Context, out io.Writer, vm api.VM, path string, tail int, follow bool) error {
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		w := visible.NewWriter(out)
		defer w.Flush()
		out = w
	}
	var before bytes.Buffer // of bounded size, as the logs are
	if old, err := registry.Open(path+registry.OldLog, os.O_RDONLY); err == nil {
		_, err = io.Copy(&before, io.LimitReader(old, logSize))
		if err = errors.Join(err, old.Close()); err != nil {
			return err
		}
	}
	f, err := registry.Open(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	if _, err := io.Copy(&before, io.LimitReader(f, logSize)); err != nil {
		return err
	}
	if _, err := out.Write(lastLines(before.Bytes(), tail)); err != nil {
		return err
	}
	for {
		now, err := registry.User().Look(vm.Name)
		if _, err := io.Copy(out, f); err != nil {
			return err
		}
		if !follow || err != nil || registry.Over(vm, now) {
			return nil
		}
		if next, err := registry.Open(path, os.O_RDONLY); err == nil { // the log may have begun anew
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
		case <-ctx.Done():
			return nil
		}
	}
}

// lastLines are the last n lines of a text; all if n is negative.
func lastLines(b []byte, n int) []byte {
	switch {
	case n < 0:
		return b
	case n == 0:
		return nil
	}
	at := len(bytes.TrimSuffix(b, []byte("\n")))
	for ; n > 0 && at >= 0; n-- {
		at = bytes.LastIndexByte(b[:at], '\n')
	}
	return b[at+1:]
}
