package vsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// greeting is how long a client of a bridge has for its first line.
const greeting = 10 * time.Second

// ServeUnix lets programs of the host connect to the guest by a unix socket, as
// Firecracker does: they write "CONNECT PORT\n", read "OK HOSTPORT\n", and have
// the stream then. A connection that fails is closed without an answer. When the
// listener is closed it closes them all, and returns.
func (d *Device) ServeUnix(l *net.UnixListener) {
	ctx, end := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	defer serving.Wait()
	defer end()
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // too many open files, which may pass
			continue
		}
		serving.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			d.greet(ctx, c)
		})
	}
}

func (d *Device) greet(ctx context.Context, u *net.UnixConn) {
	u.SetReadDeadline(time.Now().Add(greeting))
	line, err := readLine(u)
	port, ok := strings.CutPrefix(line, "CONNECT ")
	n, bad := strconv.ParseUint(strings.TrimSpace(port), 10, 32)
	if err != nil || !ok || bad != nil {
		u.Close()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, greeting)
	defer cancel()
	c, err := d.Dial(ctx, uint32(n))
	if err != nil {
		u.Close()
		return
	}
	u.SetReadDeadline(time.Time{})
	if _, err := fmt.Fprintf(u, "OK %d\n", c.key.host); err != nil {
		u.Close()
		c.Close()
		return
	}
	join(c, u)
}

// maxLine bounds a greeting, in bytes.
const maxLine = 64

// readLine reads a line and nothing beyond it: that is the guest's.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for len(line) < maxLine {
		var b [1]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("a line too long")
}

// ConnectUnix is an Options.Connect that leads to the host's unix sockets, as
// Firecracker does: port N of the host is the socket prefix_N.
func ConnectUnix(prefix string) func(port uint32) (func(*Conn), error) {
	return func(port uint32) (func(*Conn), error) {
		u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fmt.Sprintf("%s_%d", prefix, port), Net: "unix"})
		if err != nil {
			return nil, err
		}
		return func(c *Conn) { join(c, u) }, nil
	}
}

// copySize is the most that a bridge reads at once, in bytes.
const copySize = 64 << 10

// join copies both ways until both have ended. Each half ends by itself; an
// error ends both.
func join(c *Conn, u *net.UnixConn) {
	defer u.Close()
	defer c.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The struct hides other ways to copy than into the guest's memory.
		_, err := io.CopyBuffer(c, struct{ io.Reader }{u}, make([]byte, copySize))
		if err != nil {
			u.Close()
			c.Close()
			return
		}
		c.CloseWrite()
	}()
	if _, err := c.WriteTo(u); err != nil {
		u.Close()
	}
	u.CloseWrite()
	<-done
}
