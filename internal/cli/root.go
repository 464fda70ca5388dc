// Package cli is the command line: one file a command, with its flags, what it shows
// and what its errors mean for the exit status.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vmm/internal/version"
	"vmm/internal/visible"
	"vmm/vm/client"
)

// Exit statuses, beside those of a guest's isa-debug-exit.
const (
	statusOK      = 0
	statusUsage   = 2
	statusCrash   = 123 // the guest crashed
	statusTimeout = 124 // --timeout is over
	statusFailed  = 125 // vmm could not start or failed
)

// exitError ends the program with a status; a nil error was told already.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// statusOf is the exit status of an error, and what there is to say of it.
func statusOf(err error) (status int, detail string) {
	var exit *exitError
	if !errors.As(err, &exit) {
		return statusOK, ""
	}
	if exit.err != nil {
		detail = exit.err.Error()
	}
	return exit.status, detail
}

func failed(err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) { // which has a status already
		return err
	}
	return &exitError{statusFailed, err}
}

// Run executes a command line, without the program's name, and returns the exit
// status.
func Run(args []string) int {
	root := commandOf(args)
	if len(args) > 0 && (args[0] == "run" || args[0] == "config") {
		run, _, _ := root.Find(args[:1]) // it is there
		args = append(args[:1:1], volumesInShort(run.Flags(), args[1:])...)
	}
	root.SetArgs(args)
	for _, wait := range [...]time.Duration{startTime, bootTime} {
		defer time.AfterFunc(wait, forgetProgram).Stop()
	}
	ctx := withInterrupts(context.Background())
	defer endCommand(ctx)
	err := interrupted(ctx, root.ExecuteContext(ctx))
	if err == nil {
		return statusOK
	}
	var exit *exitError
	if !errors.As(err, &exit) { // cobra's own: the command line was wrong
		exit = &exitError{statusUsage, fmt.Errorf("%w (see vmm --help)", err)}
	}
	if exit.err != nil {
		fmt.Fprintln(os.Stderr, "vmm:", visible.Text(withHint(exit.err).Error()))
	}
	return exit.status
}

// Command returns the command line with all its commands, for what runs or documents it.
func Command() *cobra.Command {
	root := rootCommand()
	for _, c := range commands() {
		root.AddCommand(c.make())
	}
	return root
}

// commandOf returns it with the one command only that a program's arguments begin with, if
// they do: all of them take half as long to make as a guest does to start.
func commandOf(args []string) *cobra.Command {
	for _, c := range commands() {
		if len(args) > 0 && args[0] == c.name {
			root := rootCommand()
			root.CompletionOptions.DisableDefaultCmd = true
			root.AddCommand(c.make())
			return root
		}
	}
	return Command()
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmm",
		Short: "Run Linux virtual machines",
		Long: "vmm boots an unmodified Linux in a virtual machine, on /dev/kvm or without it: as an ordinary\n" +
			"process, without root, firmware or helper processes.",
		Example:       "  vmm run                              # a shell in the default guest\n  vmm run --kernel bzImage --initrd initrd.img -m 1G -c 2\n  vmm doctor                           # what this host can do",
		Version:       version.String(), // --version
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.InitDefaultVersionFlag() // for the manual page, too
	return root
}

// command is one of vmm's.
type command struct {
	name string // the first word of its usage
	make func() *cobra.Command
}

func commands() []command {
	pause := func() *cobra.Command {
		return pauseCommand("pause", "Stop VMs where they are", (*client.Client).Pause)
	}
	resume := func() *cobra.Command {
		return pauseCommand("resume", "Let paused VMs go on", (*client.Client).Resume)
	}
	return []command{
		{"run", runCommand},
		{"exec", execCommand},
		{"cp", cpCommand},
		{"ps", psCommand},
		{"logs", logsCommand},
		{"attach", attachCommand},
		{"stop", stopCommand},
		{"kill", killCommand},
		{"rm", rmCommand},
		{"wait", waitCommand},
		{"snapshot", snapshotCommand},
		{"restore", restoreCommand},
		{"clone", cloneCommand},
		{"migrate", migrateCommand},
		{"receive", receiveCommand},
		{"cache", cacheCommand},
		{"pause", pause},
		{"resume", resume},
		{"inspect", inspectCommand},
		{"stats", statsCommand},
		{"config", configCommand},
		{"test", testCommand},
		{"gdb", gdbCommand},
		{"agent", agentCommand},
		{"image", imageCommand},
		{"pull", pullCommand},
		{"push", pushCommand},
		{"images", imagesCommand},
		{"history", historyCommand},
		{"inspect-image", inspectImageCommand},
		{"tag", tagCommand},
		{"rmi", rmiCommand},
		{"load", loadCommand},
		{"save", saveCommand},
		{"commit", commitCommand},
		{"diff", diffCommand},
		{"export", exportCommand},
		{"volume", volumeCommand},
		{"up", upCommand},
		{"down", downCommand},
		{"login", loginCommand},
		{"logout", logoutCommand},
		{"prune", pruneCommand},
		{"port", portCommand},
		{"net", netCommand},
		{"doctor", doctorCommand},
		{"setup", setupCommand},
		{"version", versionCommand},
		{sessionName, sessionCommand},
		{jailName, ableCommand},
	}
}
