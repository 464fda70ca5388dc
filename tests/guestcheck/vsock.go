package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// vsockChecks talk to the host: vsock=PORT.
var vsockChecks = []check{{"vsock", vsock}}

// vsock sends a megabyte to an echo of the host's, ends its side, and reads all back.
func vsock(want map[string]string) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	port := uint32(number(want, "vsock"))
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port}); err != nil {
		return fmt.Errorf("port %d: %w", port, err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close()
	sent := strings.Repeat("0123456789abcdef", 64<<10)
	done := make(chan error, 1)
	go func() {
		_, err := io.WriteString(f, sent)
		unix.Shutdown(fd, unix.SHUT_WR)
		done <- err
	}()
	got, err := io.ReadAll(f)
	if e := <-done; err == nil {
		err = e
	}
	if err != nil || string(got) != sent {
		return fmt.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
	other, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(other)
	return wantError("a port that nobody serves", unix.Connect(other, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port + 1}), unix.ECONNRESET)
}
