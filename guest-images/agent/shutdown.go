package agent

import (
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Signals that have systemd start a target, and so what ends a machine (systemd(1)).
const (
	systemdPowerOff = unix.Signal(34 + 4) // SIGRTMIN+4
	systemdReboot   = unix.Signal(34 + 5) // SIGRTMIN+5
)

// ShutDown asks the guest's init to shut down or to reboot, and does it if there is none to ask.
func ShutDown(reboot bool) {
	name, signal, command := "poweroff", systemdPowerOff, unix.LINUX_REBOOT_CMD_POWER_OFF
	if reboot {
		name, signal, command = "reboot", systemdReboot, unix.LINUX_REBOOT_CMD_RESTART
	}
	if comm, err := os.ReadFile("/proc/1/comm"); err == nil && strings.TrimSpace(string(comm)) == "systemd" {
		if unix.Kill(1, signal) == nil { // also where its tools are missing
			return
		}
	}
	if exec.Command(name).Run() == nil {
		return
	}
	unix.Sync()
	unix.Reboot(command)
}
