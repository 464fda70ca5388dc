// Package client asks a running VM, over its control socket: see vm/api for what, and
// vm/registry for where the sockets are. It needs nothing but the standard library.
//
// Errors are a VM's *api.Error, which errors.Is finds by its code (api.ErrPaused and so
// on), ErrVersion, the cause of the context's end, or the operating system's. Where nobody
// listens, or hangs up before the answer, it is api.ErrNotRunning too.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"

	"vmm/vm/api"
)

// ErrVersion is that of a VM whose process speaks another version of the protocol.
var ErrVersion = errors.New("the VM's process speaks another version of the API than " + api.Version + ": it was started by another vmm")

// Client asks one VM. Its methods may be called at the same time.
type Client struct {
	socket string
	rights []*os.File // descriptors that go with each request
}

// New returns a client for the VM that listens on a unix socket. It connects when it
// is used, once for each request.
func New(socket string) *Client { return &Client{socket: socket} }

// Inspect returns which VM it is, and how it does.
func (c *Client) Inspect(ctx context.Context) (vm api.VM, err error) {
	return vm, c.ask(ctx, http.MethodGet, api.PathVM, nil, &vm)
}

// Stats returns what the VM has used so far.
func (c *Client) Stats(ctx context.Context) (s api.Stats, err error) {
	return s, c.ask(ctx, http.MethodGet, api.PathStats, nil, &s)
}

// Metrics returns what the VM has used so far in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) (text []byte, err error) {
	err = c.do(ctx, http.MethodGet, api.PathMetrics, nil, func(r io.Reader) error {
		text, err = io.ReadAll(io.LimitReader(r, api.MaxBody))
		return err
	})
	return text, err
}

// Stop asks the guest to shut down. It does not wait for that.
func (c *Client) Stop(ctx context.Context) error { return c.post(ctx, api.PathStop, nil) }

// Kill ends the VM as pulling the plug does. Its process ends soon after that.
func (c *Client) Kill(ctx context.Context) error { return c.post(ctx, api.PathKill, nil) }

// Pause stops the guest where it is. It returns api.ErrPaused if it stands already.
func (c *Client) Pause(ctx context.Context) error { return c.post(ctx, api.PathPause, nil) }

// Resume lets a paused guest go on. It returns api.ErrNotPaused if it does already.
func (c *Client) Resume(ctx context.Context) error { return c.post(ctx, api.PathResume, nil) }

// Snapshot has the VM saved; progress, if it is not nil, hears now and then how far
// that is, on the caller's goroutine.
func (c *Client) Snapshot(ctx context.Context, req api.SnapshotRequest, progress func(api.Progress)) (*api.SnapshotResult, error) {
	return c.SnapshotTo(ctx, req, nil, progress)
}

// SnapshotTo is Snapshot for a VM that makes no files: it writes to these, whose names
// become req.Files, and the caller gives the snapshot its name.
func (c *Client) SnapshotTo(ctx context.Context, req api.SnapshotRequest, files map[string]*os.File, progress func(api.Progress)) (*api.SnapshotResult, error) {
	var rights []*os.File
	for name, f := range files {
		req.Files, rights = append(req.Files, name), append(rights, f)
	}
	return follow[api.SnapshotResult](ctx, c.with(rights), api.PathSnapshot, req, progress)
}

// Migrate has the VM move; progress is as with Snapshot. If ctx ends before, the VM
// stays where it is.
func (c *Client) Migrate(ctx context.Context, req api.MigrateRequest, progress func(api.Progress)) (*api.MigrateResult, error) {
	return follow[api.MigrateResult](ctx, c, api.PathMigrate, req, progress)
}

// MigrateOver is Migrate for a VM that connects to nobody: it uses a connection to
// req.Address, whose descriptor is handed over.
func (c *Client) MigrateOver(ctx context.Context, req api.MigrateRequest, conn *os.File, progress func(api.Progress)) (*api.MigrateResult, error) {
	req.Connected = true
	return follow[api.MigrateResult](ctx, c.with([]*os.File{conn}), api.PathMigrate, req, progress)
}

// Resize changes the size of a disk. It returns api.ErrNotFound if the VM has no such
// disk, and api.ErrShrink if it would lose data and that is not allowed.
func (c *Client) Resize(ctx context.Context, req api.ResizeRequest) error {
	return c.post(ctx, api.PathResize, req)
}

// Ports returns the ports that are published.
func (c *Client) Ports(ctx context.Context) (ports []api.Port, err error) {
	return ports, c.ask(ctx, http.MethodGet, api.PathPorts, nil, &ports)
}

// Publish publishes a port, and returns it with the host's port that it got. It
// returns api.ErrNoGateway, or api.ErrConflict if the host's port is not to be had.
func (c *Client) Publish(ctx context.Context, p api.Port) (did api.Port, err error) {
	return did, c.ask(ctx, http.MethodPost, api.PathPorts, p, &did)
}

// Unpublish publishes a port no longer. It returns api.ErrNoGateway, or
// api.ErrNotFound if it was not published.
func (c *Client) Unpublish(ctx context.Context, p api.Port) error {
	return c.ask(ctx, http.MethodDelete, api.PathPorts, p, nil)
}

// NICs returns the network devices, in the order in which the guest has them.
func (c *Client) NICs(ctx context.Context) (nics []api.NIC, err error) {
	return nics, c.ask(ctx, http.MethodGet, api.PathNICs, nil, &nics)
}

// SetLink plugs the cable of a network device in or out. It returns api.ErrNotFound if
// there is no such device.
func (c *Client) SetLink(ctx context.Context, nic int, up bool) error {
	return c.post(ctx, api.PathLink, api.LinkRequest{NIC: nic, Up: up})
}

// post sends a request that is answered with nothing.
func (c *Client) post(ctx context.Context, path string, request any) error {
	return c.ask(ctx, http.MethodPost, path, request, nil)
}

// ask sends a request; the answer goes to answer, if that is not nil.
func (c *Client) ask(ctx context.Context, method, path string, request, answer any) error {
	return c.do(ctx, method, path, request, func(r io.Reader) error {
		if answer == nil {
			return nil
		}
		return json.NewDecoder(io.LimitReader(r, api.MaxBody)).Decode(answer)
	})
}

// follow sends a request whose answer is lines of events.
func follow[Result any](ctx context.Context, c *Client, path string, request any, progress func(api.Progress)) (result *Result, err error) {
	err = c.do(ctx, http.MethodPost, path, request, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, api.MaxBody)
		for lines.Scan() {
			var e api.Event[Result]
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				return err
			}
			switch {
			case e.Error != nil:
				return e.Error
			case e.Result != nil:
				result = e.Result
				return nil
			case e.Progress != nil && progress != nil:
				progress(*e.Progress)
			}
		}
		if err := lines.Err(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	})
	return result, err
}

// do sends a request and has its answer read, unless that is an error.
func (c *Client) do(ctx context.Context, method, path string, request any, read func(io.Reader) error) error {
	var body io.Reader
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}
	r, err := http.NewRequestWithContext(ctx, method, "http://vmm"+path, body)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(r)
	if err == nil {
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			err = read(response.Body)
		} else {
			err = errorOf(response)
		}
	}
	return explain(ctx, err)
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil || len(c.rights) == 0 {
		return conn, err
	}
	return &rightsConn{UnixConn: conn.(*net.UnixConn), files: c.rights}, nil
}

// with is a client that hands descriptors over with each request.
func (c *Client) with(files []*os.File) *Client {
	n := *c
	n.rights = files
	return &n
}

// rightsConn is a connection whose first bytes bring descriptors (unix(7), SCM_RIGHTS).
type rightsConn struct {
	*net.UnixConn
	files []*os.File // until they are sent
}

// Write implements net.Conn.
func (c *rightsConn) Write(p []byte) (int, error) {
	if len(c.files) == 0 || len(p) == 0 {
		return c.UnixConn.Write(p)
	}
	var fds []int
	for _, f := range c.files {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := c.WriteMsgUnix(p, syscall.UnixRights(fds...), nil)
	c.files = nil
	if err == nil && n < len(p) {
		var more int
		more, err = c.UnixConn.Write(p[n:])
		n += more
	}
	return n, err
}

// errorOf reads an answer that is an error.
func errorOf(r *http.Response) error {
	var a api.ErrorAnswer
	b, err := io.ReadAll(io.LimitReader(r.Body, api.MaxBody))
	if err != nil {
		return err
	}
	if json.Unmarshal(b, &a) != nil || a.Error == nil {
		return fmt.Errorf("%w (%s)", ErrVersion, r.Status)
	}
	return a.Error
}

// explain says what an error of the connection means.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var of *url.Error
	if errors.As(err, &of) { // which names a URL that there is not
		err = of.Err
	}
	for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, gone) {
			return api.ErrNotRunning.With("the VM has ended")
		}
	}
	return err
}
