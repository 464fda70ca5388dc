package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"vmm/guest-images/agent"
)

// agentUnit is the agent as a service of systemd.
const (
	agentUnitPath = "/etc/systemd/system/vmm-agent.service"
	agentUnit     = `[Unit]
Description=Lets vmm on the host run commands in this guest
ConditionVirtualization=vm

[Service]
ExecStart=%s agent
Restart=on-failure

[Install]
WantedBy=multi-user.target
`
)

// agentCommand is vmm agent.
func agentCommand() *cobra.Command {
	var install bool
	cmd := &cobra.Command{
		Use: "agent", Short: "Be the agent in a guest that has a system of its own", Args: cobra.NoArgs,
		Long: "agent runs inside a guest, and lets vmm exec and vmm cp on the host reach it. The default guest,\n" +
			"and one that runs a command, have it already; in another, copy vmm there and install it.",
		Example: "  vmm agent --install    # in the guest, as root",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if install {
				return failed(installAgent())
			}
			takeSignals(cmd.Context()) // it ends with any
			s := &agent.Server{Shutdown: agent.ShutDown}
			return failed(s.Run())
		},
	}
	cmd.Flags().BoolVar(&install, "install", false, "make it a service of systemd, and start that")
	return cmd
}

// installAgent makes this very program's agent a service.
func installAgent() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if strings.ContainsAny(self, " \t\"'%") {
		return fmt.Errorf("%s: put vmm where the path has no spaces or quotes", self)
	}
	if _, err := exec.LookPath("systemctl"); err != nil {
		return errors.New("there is no systemd here: have the guest's init run \"vmm agent\" as root")
	}
	if err := os.WriteFile(agentUnitPath, fmt.Appendf(nil, agentUnit, self), 0o644); err != nil {
		return err
	}
	out, err := exec.Command("systemctl", "enable", "--now", "vmm-agent").CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl enable vmm-agent: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
