package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vmm/guest-images/agent"
	"vmm/internal/bytesize"
)

// cpCommand is vmm cp.
func cpCommand() *cobra.Command {
	var maxSize bytesize.Size
	cmd := &cobra.Command{
		Use: "cp FROM TO", Short: "Copy files into or out of a running VM", Args: cobra.ExactArgs(2),
		Long: "cp copies a file or a directory. The one in the guest is written VM:PATH. What is copied to a\n" +
			"directory goes into it. From the guest comes only what was asked for, up to --max-size, and it\n" +
			"is not written through symbolic links.",
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
			if vm, err = ask(vm).Inspect(cmd.Context()); err != nil {
				return failed(advise(err))
			}
			err = agentOf(vm).Get(cmd.Context(), from, to, agent.GetOptions{MaxSize: int64(maxSize), Guest: vm.GuestWritable})
			var large *agent.TooLargeError
			if errors.As(err, &large) {
				err = fmt.Errorf("%w: --max-size allows more; the part that came is there", err)
			}
			return failed(err)
		},
	}
	cmd.Flags().Var(&maxSize, "max-size", "`SIZE` of what may come from the guest, each file in blocks of 4 KiB; what is free, less 64 MiB, if not given")
	return cmd
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
