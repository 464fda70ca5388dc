// Package server serves the API of one VM on its control socket: HTTP on a unix socket
// that only its user can open. What vm/api defines is here joined with what a VM can do.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"vmm/internal/unixsocket"
	"vmm/vm/api"
)

// VM is what the API is served over. Its methods may be called at the same time. Of
// the errors that they return, those that errors.As finds an *api.Error in keep its
// code; others have that of api.ErrFailed. The message is always the whole error's.
type VM interface {
	Info() api.VM
	Stats() api.Stats

	// Stop asks the guest to shut down, and does not wait for that.
	Stop(context.Context) error
	// Kill ends the VM, and need not wait for that.
	Kill()
	Pause() error
	Resume() error

	// Snapshot and Migrate may call the function, from any goroutine, as often as they
	// like, until they return.
	Snapshot(context.Context, api.SnapshotRequest, func(api.Progress)) (*api.SnapshotResult, error)
	Migrate(context.Context, api.MigrateRequest, func(api.Progress)) (*api.MigrateResult, error)

	Resize(api.ResizeRequest) error
	Ports() []api.Port
	Publish(api.Port) (api.Port, error)
	Unpublish(api.Port) error
	NICs() []api.NIC
	SetLink(nic int, up bool) error

	// Agent connects to the guest's agent.
	Agent(context.Context) (Conn, error)
	// Console and GDB return what serves a connection until it, or the VM, ends. It
	// need not close it.
	Console() (func(Conn), error)
	GDB() (func(Conn), error)
}

// Conn is a connection that can be closed in one direction.
type Conn interface {
	net.Conn
	CloseWrite() error
}

const (
	// headerTime is how long a client may take to say what it wants.
	headerTime = 10 * time.Second
	// closeTime bounds how long Close waits for what is being served, and flushTime for
	// the last bytes of answers.
	closeTime = 5 * time.Second
	flushTime = 100 * time.Millisecond
	// maxSocketPath bounds the path of a unix socket, in bytes (unix(7)).
	maxSocketPath = 107
)

// errEnded is what somebody is told who asks too late.
var errEnded = api.ErrNotRunning.With("the VM has ended")

// Server serves the API of one VM.
type Server struct {
	vm     VM
	http   http.Server
	cancel context.CancelCauseFunc // of all requests

	mu       sync.Mutex
	listener net.Listener
	closed   bool
	joined   map[Conn]bool  // connections that were upgraded
	serving  sync.WaitGroup // the listener and requests; nothing is added once closed
}

// New returns a server, which is an http.Handler as it is.
func New(vm VM) *Server {
	s := &Server{vm: vm, joined: map[Conn]bool{}}
	var ctx context.Context
	ctx, s.cancel = context.WithCancelCause(context.Background())
	s.http = http.Server{Handler: s, ReadHeaderTimeout: headerTime, BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withConn}
	return s
}

// Listen makes the socket, for Serve. One that was left behind there is replaced. It is
// called once; in a process that is to be confined, before that.
func (s *Server) Listen(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("the control socket %s: the path is too long: set XDG_RUNTIME_DIR to a shorter one", path)
	}
	os.Remove(path)
	u, err := unixsocket.Listen(path)
	if err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener = listener{u}
	if s.closed {
		return s.listener.Close()
	}
	return nil
}

// Serve begins to serve on the socket, until Close.
func (s *Server) Serve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.listener; l != nil && !s.closed {
		s.serving.Go(func() { s.http.Serve(l) })
	}
}

// Close ends the socket and waits. The contexts of requests that are being served end, with
// an api.ErrNotRunning as their cause, and they are answered still; connections that were upgraded end. It may be called
// twice.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.listener != nil {
		s.listener.Close()
	}
	for conn := range s.joined {
		hangUp(conn)
	}
	s.mu.Unlock()
	s.cancel(errEnded)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serving.Wait()
	}()
	select {
	case <-done:
	case <-time.After(closeTime):
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	s.http.Shutdown(ctx) // an error is that of a client that has not asked anything
	return s.http.Close()
}

// begin reports whether a request may still be served.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.serving.Add(1)
	}
	return !s.closed
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		answerError(w, errEnded)
		return
	}
	defer s.serving.Done()
	methods, ok := routes[r.URL.Path]
	if !ok {
		answerError(w, api.ErrNotFound.With("there is no path %s in version %s of the API", r.URL.Path, api.Version))
		return
	}
	route, ok := methods[r.Method]
	if !ok {
		answerError(w, api.ErrMethod.With("%s has no method %s", r.URL.Path, r.Method))
		return
	}
	if err := route.serve(s, w, r); err != nil {
		answerError(w, err)
	}
}

// statuses are HTTP's, by the codes of errors; others are conflicts.
var statuses = map[string]int{
	api.ErrBadRequest.Code:       http.StatusBadRequest,
	api.ErrNotFound.Code:         http.StatusNotFound,
	api.ErrMethod.Code:           http.StatusMethodNotAllowed,
	api.ErrAgentSilent.Code:      http.StatusGatewayTimeout,
	api.ErrMigrationUnknown.Code: http.StatusInternalServerError,
	api.ErrFailed.Code:           http.StatusInternalServerError,
}

// errorFor is an error as the API has it.
func errorFor(err error) *api.Error {
	of := api.ErrFailed
	errors.As(err, &of)
	return &api.Error{Code: of.Code, Message: err.Error()}
}

func answerError(w http.ResponseWriter, err error) {
	e := errorFor(err)
	status := http.StatusConflict
	if n, ok := statuses[e.Code]; ok {
		status = n
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(api.ErrorAnswer{Error: e})
}

// answer sends what a request was answered with.
func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// decode reads a request's body.
func decode(w http.ResponseWriter, r *http.Request, to any) error {
	c := http.NewResponseController(w)
	c.SetReadDeadline(time.Now().Add(headerTime))
	defer c.SetReadDeadline(time.Time{})
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody)).Decode(to); err != nil {
		return api.ErrBadRequest.With("the request: %v", err)
	}
	return nil
}
