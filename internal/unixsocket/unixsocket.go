// Package unixsocket makes unix sockets that only their user can connect to.
package unixsocket

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// mode is the one of a socket's file.
const mode = 0o600

// private has a socket's file made with mode: Linux gives it that of the socket itself, so
// that there is no moment with another (net/unix/af_unix.c, unix_bind_bsd).
var private = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	if bad := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), mode) }); bad != nil {
		return bad
	}
	return err
}}

// Listen listens on a socket, a stream, in the place of one that was left behind. Where
// somebody listens already, or there is something else, the error is EADDRINUSE.
func Listen(path string) (*net.UnixListener, error) {
	return replacing("unix", path, func() (*net.UnixListener, error) {
		l, err := private.Listen(context.Background(), "unix", path)
		if err != nil {
			return nil, err
		}
		return l.(*net.UnixListener), nil
	})
}

// ListenPacket is Listen for datagrams. Closing it leaves the socket's name.
func ListenPacket(path string) (*net.UnixConn, error) {
	return replacing("unixgram", path, func() (*net.UnixConn, error) {
		c, err := private.ListenPacket(context.Background(), "unixgram", path)
		if err != nil {
			return nil, err
		}
		return c.(*net.UnixConn), nil
	})
}

// replacing makes a socket, again if one that was left behind is in its place.
func replacing[T any](network, path string, do func() (T, error)) (T, error) {
	s, err := do()
	if errors.Is(err, unix.EADDRINUSE) && dead(network, path) {
		os.Remove(path)
		return do()
	}
	return s, err
}

// dead tells whether a path is a socket at which nobody listens.
func dead(network, path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial(network, path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}
