package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
)

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
