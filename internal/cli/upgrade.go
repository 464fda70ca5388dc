package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"vmm/guest-images/agent"
	"vmm/vm/api"
)

// The protocols to which a connection to the control socket can be switched.
const (
	agentProtocol   = "vmm-agent"   // one connection to the guest's agent
	consoleProtocol = "vmm-console" // the bytes of the console
)

// agentPatience is how long a guest may take until its agent answers.
const agentPatience = 2 * time.Minute

// switchTo takes a connection over from the HTTP server.
func switchTo(w http.ResponseWriter, protocol string) (net.Conn, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &bufferedConn{conn, buffered.Reader}, nil
}

// bufferedConn reads what was read ahead first.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite ends what the other side reads.
func (c *bufferedConn) CloseWrite() error { return c.Conn.(*net.UnixConn).CloseWrite() }

// joinAgent connects a client to the guest's agent.
func (c *control) joinAgent(w http.ResponseWriter, r *http.Request) {
	if c.agent == nil {
		http.Error(w, "this VM has no agent (--no-agent)", http.StatusConflict)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), agentPatience,
		errors.New("the guest's agent does not answer: a guest with a system of its own needs it installed (vmm agent --install there)"))
	defer cancel()
	err := c.agent.waitOpen(ctx)
	var guest net.Conn
	if err == nil {
		guest, err = c.agent.client().Dial(ctx)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	defer guest.Close()
	conn, err := switchTo(w, agentProtocol)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		io.Copy(guest, conn)
		guest.(interface{ CloseWrite() error }).CloseWrite()
	}()
	io.Copy(conn, guest)
}

// joinConsole connects a terminal to the console.
func (c *control) joinConsole(w http.ResponseWriter, _ *http.Request) {
	if c.console == nil {
		http.Error(w, "this VM's console is where it was started", http.StatusConflict)
		return
	}
	conn, err := switchTo(w, consoleProtocol)
	if err != nil {
		return
	}
	defer conn.Close()
	c.console.attach(conn)
}

// upgrade connects to a VM and switches the protocol.
func upgrade(ctx context.Context, vm api.VM, path, protocol string) (net.Conn, error) {
	conn, err := dialVM(ctx, vm)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(err error) (net.Conn, error) {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: vmm\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", path, protocol); err != nil {
		return fail(err)
	}
	r := bufio.NewReader(conn)
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		return fail(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(response.Body, maxBody))
		return fail(errors.New(strings.TrimSpace(string(b))))
	}
	return &bufferedConn{conn, r}, nil
}

// agentOf speaks to the agent of a VM of another process.
func agentOf(vm api.VM) *agent.Client {
	return &agent.Client{Dial: func(ctx context.Context) (net.Conn, error) { return upgrade(ctx, vm, "/agent", agentProtocol) }}
}
