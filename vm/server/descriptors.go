package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vmm/vm/api"
)

// maxDescriptors bounds how many descriptors a client may hand over (SCM_MAX_FD).
const maxDescriptors = 253

// listener accepts connections over which descriptors can come.
type listener struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &descriptorConn{UnixConn: c, oob: make([]byte, unix.CmsgSpace(4*maxDescriptors))}, nil
}

// descriptorConn is a connection that keeps the descriptors that come with what is read.
type descriptorConn struct {
	*net.UnixConn
	oob   []byte // of Read, which one goroutine at a time calls
	mu    sync.Mutex
	files []*os.File
}

// Read implements net.Conn.
func (c *descriptorConn) Read(p []byte) (int, error) {
	n, oobn, _, _, err := c.ReadMsgUnix(p, c.oob)
	if oobn > 0 {
		if bad := c.keep(c.oob[:oobn]); bad != nil {
			return 0, bad
		}
	}
	if errors.Is(err, io.EOF) { // which ReadMsgUnix wraps, as Read must not
		err = io.EOF
	}
	return max(n, 0), err
}

// keep takes the descriptors of a control message.
func (c *descriptorConn) keep(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			c.files = append(c.files, os.NewFile(uintptr(fd), "descriptor"))
		}
	}
	return nil
}

// take returns the descriptors that have come, by the names that the request gives them.
func (c *descriptorConn) take(names []string) (map[string]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(names) != len(c.files) {
		return nil, api.ErrBadRequest.With("the request names %d files, and %d descriptors came with it", len(names), len(c.files))
	}
	files := map[string]*os.File{}
	for i, name := range names {
		files[name] = c.files[i]
	}
	if len(files) != len(names) {
		return nil, api.ErrBadRequest.With("two files of one name")
	}
	c.files = nil
	return files, nil
}

// Close implements net.Conn. Descriptors that nobody has taken are closed.
func (c *descriptorConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		f.Close()
	}
	c.files = nil
	return c.UnixConn.Close()
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// descriptors are those that came with a request; nil if it names none.
func descriptors(ctx context.Context, names []string) (map[string]*os.File, error) {
	if len(names) == 0 {
		return nil, nil
	}
	c, ok := ctx.Value(connKey{}).(*descriptorConn)
	if !ok {
		return nil, api.ErrBadRequest.With("no descriptors can come over this connection")
	}
	return c.take(names)
}

// connection is the one that came with a request.
func connection(ctx context.Context) (net.Conn, error) {
	const name = "connection"
	files, err := descriptors(ctx, []string{name})
	if err != nil {
		return nil, err
	}
	defer files[name].Close()
	c, err := net.FileConn(files[name])
	if err != nil {
		return nil, api.ErrBadRequest.With("what came is no connection: %v", err)
	}
	return c, nil
}
