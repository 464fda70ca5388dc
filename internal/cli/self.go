package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// sessionName is the command that runs a session which another process has begun: it
// reads it, as JSON, from standard input, where there is nothing for its VM then.
const sessionName = "_session"

// sessionCommand is that command. It is not for people.
func sessionCommand() *cobra.Command {
	return &cobra.Command{
		Use: sessionName, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s session
			err := json.NewDecoder(os.Stdin).Decode(&s)
			if err != nil || s.Config == nil && s.Restore == nil && s.Receive == nil {
				return usage("%s is for vmm itself, which tells it on standard input what to run", sessionName)
			}
			null, err := os.Open(os.DevNull)
			if err != nil {
				return failed(err)
			}
			defer null.Close()
			if err := unix.Dup2(int(null.Fd()), int(os.Stdin.Fd())); err != nil {
				return failed(err)
			}
			if s.Detach {
				if err := holdStarter(); err != nil {
					return err
				}
			}
			if s.Restart != nil && !s.Supervised {
				return s.superviseVM(cmd.Context())
			}
			return s.run(cmd.Context())
		},
	}
}

// self is this program, where it is looked for when it starts itself again.
const self = "/proc/self/exe"

// process is a process of its own for the session, which is not started yet. When ctx
// ends, it is killed, unless its Cancel says otherwise.
func (s *session) process(ctx context.Context, program string) (*exec.Cmd, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("what another process is to run: %w", err)
	}
	c := exec.CommandContext(ctx, program, sessionName)
	c.Stdin = bytes.NewReader(text)
	return c, nil
}
