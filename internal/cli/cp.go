package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmm/guest-images/agent"
	"vmm/internal/bytesize"
	"vmm/internal/decompress"
	"vmm/vm/api"
)

// cpCommand is vmm cp.
func cpCommand() *cobra.Command {
	var maxSize bytesize.Size
	var follow bool
	cmd := &cobra.Command{
		Use: "cp FROM TO", Short: "Copy files into or out of a running VM", Args: cobra.ExactArgs(2),
		Long: "cp copies a file or a directory, as docker cp does. The one in the guest is written VM:PATH, from\n" +
			"its root on. What is copied to a directory goes into it; of DIRECTORY/. what is in that. The other\n" +
			"side may be -, for a tar archive on standard input or output. From the guest comes only what was\n" +
			"asked for, up to --max-size.",
		Example: "  vmm cp results dev:/tmp\n  vmm cp dev:/var/log .\n  vmm cp dev:/etc/. etc-of-dev\n  vmm cp dev:/srv - | tar t",
		RunE: func(cmd *cobra.Command, args []string) error {
			fromVM, from, fromGuest := guestPath(args[0])
			toVM, to, toGuest := guestPath(args[1])
			if fromGuest == toGuest {
				return &exitError{statusUsage, errors.New("cp: one of the two is VM:PATH")}
			}
			vm, err := findRunning(cmd.Context(), fromVM+toVM)
			if err != nil {
				return failed(err)
			}
			switch {
			case from == "" || to == "":
				return usage("cp: an empty path")
			case toGuest && from == stdStream:
				return failed(orEnded(cmd.Context(), vm, putArchive(cmd.Context(), vm, cmd.InOrStdin(), to)))
			case toGuest:
				return failed(orEnded(cmd.Context(), vm, agentOf(vm).Put(cmd.Context(), from, to, agent.PutOptions{Follow: follow})))
			case to == stdStream && term.IsTerminal(int(os.Stdout.Fd())):
				return usage("cp: a tar archive is not for a terminal: vmm cp %s - | tar x", args[0])
			}
			if vm, err = ask(vm).Inspect(cmd.Context()); err != nil {
				return failed(advise(err))
			}
			o := agent.GetOptions{MaxSize: int64(maxSize), Guest: vm.GuestWritable, Follow: follow}
			if to == stdStream {
				err = agentOf(vm).GetArchive(cmd.Context(), from, cmd.OutOrStdout(), o)
			} else {
				err = agentOf(vm).Get(cmd.Context(), from, to, o)
			}
			var large *agent.TooLargeError
			if errors.As(err, &large) {
				err = fmt.Errorf("%w: --max-size allows more; the part that came is there", err)
			}
			return failed(orEnded(cmd.Context(), vm, err))
		},
	}
	cmd.Flags().Var(&maxSize, "max-size", "`SIZE` of what may come from the guest, each file in blocks of 4 KiB; what is free, less 64 MiB, if not given")
	cmd.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what FROM leads to, if it is a symbolic link")
	return cmd
}

// stdStream stands for standard input or output in the place of a path.
const stdStream = "-"

// putArchive unpacks a tar archive, compressed or not, in a guest.
func putArchive(ctx context.Context, vm api.VM, in io.Reader, to string) error {
	buffered := bufio.NewReaderSize(in, 64<<10)
	head, err := buffered.Peek(decompress.HeadSize)
	if err != nil && err != io.EOF {
		return err
	}
	in = buffered
	if f := decompress.Detect(head); f != nil {
		r, err := f.NewReader(buffered)
		if err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
		defer r.Close()
		in = r
	}
	return agentOf(vm).PutArchive(ctx, in, to)
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
