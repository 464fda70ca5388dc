// Command vmm runs Linux virtual machines from the command line.
//
// The same binary is the init of its default guest: as PID 1 it is that, and as
// guestinit.AgentName the agent beside another one.
package main

import (
	"io"
	"log"
	"os"

	"vmm/guest-images/guestinit"
	"vmm/internal/cli"
)

func main() {
	if os.Getpid() == 1 && os.Args[0] == "/init" || os.Args[0] == guestinit.AgentName {
		guestinit.Main()
	}
	// Libraries tell the standard logger what guests do wrong: go-fuse of requests
	// that are cut off. Guests must not fill our standard error with that.
	log.SetOutput(io.Discard)
	os.Exit(cli.Run(os.Args[1:]))
}
