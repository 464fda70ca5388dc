// Command manpages writes vmm's manual pages, one a command, into a directory:
//
//	go run ./internal/manpages DIR
//
// They are made of the commands themselves. It is a program of its own so that vmm does
// not carry the generator. The pages bear the date in SOURCE_DATE_EPOCH, if there is one.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"

	"vmm/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manpages DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manpages:", err)
		os.Exit(1)
	}
}

// write makes the directory, if need be, and the pages in it.
func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := cli.Command()
	root.DisableAutoGenTag = true // which the other commands go by
	return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "vmm", Manual: "User Commands"}, dir)
}
