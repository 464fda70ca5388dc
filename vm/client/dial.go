package client

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"vmm/vm/api"
)

// The connections can be closed in one direction, by a method CloseWrite() error.

// DialAgent connects to the guest's agent, whose protocol guest-images/agent speaks:
// this is what the Dial of its Client may be. It waits for an agent that has not begun
// yet, and returns api.ErrNoAgent or, after two minutes, api.ErrAgentSilent.
func (c *Client) DialAgent(ctx context.Context) (net.Conn, error) {
	return c.upgrade(ctx, api.PathAgent, api.ProtocolAgent)
}

// DialConsole connects to the guest's console. It returns api.ErrNoConsole if the
// console is that of who has started the VM.
func (c *Client) DialConsole(ctx context.Context) (net.Conn, error) {
	return c.upgrade(ctx, api.PathConsole, api.ProtocolConsole)
}

// DialGDB connects a gdb to the guest, which stands still until gdb lets it go on.
func (c *Client) DialGDB(ctx context.Context) (net.Conn, error) {
	return c.upgrade(ctx, api.PathGDB, api.ProtocolGDB)
}

// upgrade connects and switches the protocol. ctx is for that, not for what follows.
func (c *Client) upgrade(ctx context.Context, path, protocol string) (_ net.Conn, err error) {
	raw, err := c.dial(ctx)
	if err != nil {
		return nil, explain(ctx, err)
	}
	conn := &upgraded{UnixConn: raw.(*net.UnixConn), r: bufio.NewReader(raw)}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = conn.upgrade(path, protocol)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, explain(ctx, err)
	}
	return conn, nil
}

// upgraded is a connection that was an HTTP client's.
type upgraded struct {
	*net.UnixConn
	r *bufio.Reader // what was read ahead comes first
}

// Read implements net.Conn.
func (c *upgraded) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *upgraded) upgrade(path, protocol string) error {
	_, err := fmt.Fprintf(c.UnixConn, "POST %s HTTP/1.1\r\nHost: vmm\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", path, protocol)
	if err != nil {
		return err
	}
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		return errorOf(response)
	}
	return nil
}
