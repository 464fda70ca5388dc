package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"vmm/bootloader"
	"vmm/machine"
)

func main() {
	k, err := bootloader.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	var ird []byte
	if len(os.Args) > 2 {
		ird, _ = os.ReadFile(os.Args[2])
	}
	args := ""
	if len(os.Args) > 3 {
		args = os.Args[3]
	}
	t := time.Now()
	m, err := machine.New(machine.Config{Kernel: k, Initrd: ird, Console: os.Stdout, Cmdline: args, Memory: 256 << 20, CPUs: len(os.Getenv("CPUS"))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	fmt.Fprintln(os.Stderr, "new", time.Since(t))
	ctx, c := context.WithTimeout(context.Background(), 60*time.Second)
	defer c()
	r, err := m.Run(ctx)
	fmt.Fprintln(os.Stderr, "\n", r, err, time.Since(t), m.Exits())
}
