package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"vmm/vm/api"
)

// agentTimeout is how long a guest may take until its agent answers.
const agentTimeout = 2 * time.Minute

// join is the route of a request whose connection becomes another. open finds what
// serves that, or why there is nothing.
func join(protocol string, open func(context.Context, VM) (func(Conn), error)) route {
	return route{protocol: protocol, serve: func(s *Server, w http.ResponseWriter, r *http.Request) error {
		if _, can := w.(http.Hijacker); !can {
			return api.ErrBadRequest.With("only a connection of HTTP/1.1 can become one of %s", protocol)
		}
		serve, err := open(r.Context(), s.vm)
		if err != nil {
			return err
		}
		conn, err := s.upgrade(w, protocol)
		if err != nil {
			return err
		}
		defer s.leave(conn)
		serve(conn)
		return nil
	}}
}

// agent joins a client with the guest's agent.
func agent(ctx context.Context, vm VM) (func(Conn), error) {
	ctx, cancel := context.WithTimeoutCause(ctx, agentTimeout, api.ErrAgentSilent)
	defer cancel()
	guest, err := vm.Agent(ctx)
	if err != nil {
		return nil, err
	}
	return func(client Conn) { pipe(client, guest) }, nil
}

// pipe joins a client with a guest until the guest has said its last word, or the
// client is hung up on.
func pipe(client, guest Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(guest, client); err != nil {
			guest.Close()
			return
		}
		guest.CloseWrite()
	}()
	io.Copy(client, guest)
	guest.Close()
	hangUp(client)
	<-done
}

// upgraded is a connection that was the HTTP server's.
type upgraded struct {
	*net.UnixConn
	r *bufio.Reader // what was read ahead comes first
}

// Read implements net.Conn.
func (c *upgraded) Read(p []byte) (int, error) { return c.r.Read(p) }

// upgrade takes a connection over from the HTTP server, until leave.
func (s *Server) upgrade(w http.ResponseWriter, protocol string) (Conn, error) {
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	conn := &upgraded{raw.(*descriptorConn).UnixConn, buffered.Reader}
	conn.SetDeadline(time.Time{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joined[conn] = true
	if s.closed {
		hangUp(conn)
	}
	// Whoever serves a client that has gone already finds that out.
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	return conn, nil
}

func (s *Server) leave(conn Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.joined, conn)
	conn.Close()
}

// hangUp has nothing more read from a connection, and little time left for what is to
// be written.
func hangUp(conn Conn) {
	conn.SetReadDeadline(time.Unix(1, 0))
	conn.SetWriteDeadline(time.Now().Add(closeTime))
}
