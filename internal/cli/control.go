package cli

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
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/machine"
	"vmm/virtio/blk"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// control is the socket by which other commands reach a running VM: HTTP on a
// unix socket that only its user can open. docs/api.md describes it.
type control struct {
	server  http.Server
	dir     *registry.Entry
	machine *machine.Machine
	disks   []controlledDisk
	nets    *networks
	agent   *guestAgent // nil if the guest is not to have one
	console *consoleHub // nil if the console is elsewhere
	command bool        // the VM is there for a command
	saver   *saver
	// end ends the VM at once.
	end func()
}

// controlledDisk is a disk that can be resized.
type controlledDisk struct {
	path   string // absolute, without symbolic links
	device *blk.Device
}

// resizeRequest asks for a disk to be resized: to Size bytes, or by as many
// where Sign is "+" or "-".
type resizeRequest struct {
	Path   string `json:"path"`
	Sign   string `json:"sign,omitempty"`
	Size   int64  `json:"size"`
	Shrink bool   `json:"shrink,omitempty"`
}

// newSize is the size that the request means for a disk.
func (r *resizeRequest) newSize(old int64) (int64, error) {
	size := r.Size
	switch r.Sign {
	case "+":
		size = old + size
	case "-":
		size = old - size
	}
	if size < 0 {
		return 0, fmt.Errorf("%s has only %s", r.Path, humanSize(old))
	}
	if size < old && !r.Shrink {
		return 0, fmt.Errorf("%s would lose its last %s: say --shrink if that is meant", r.Path, humanSize(old-size))
	}
	return size, nil
}

// maxSocketPath bounds the path of a unix socket, in bytes.
const maxSocketPath = 107

// listen opens the socket.
func (c *control) listen() error {
	path := c.dir.Socket()
	if len(path) > maxSocketPath {
		return fmt.Errorf("the control socket %s: the path is too long: set XDG_RUNTIME_DIR to a shorter one", path)
	}
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	c.server.Handler = c.handler()
	c.server.ReadHeaderTimeout = 10 * time.Second
	go c.server.Serve(l)
	return nil
}

// handler has the paths of docs/api.md.
func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /vm", c.inspect)
	mux.HandleFunc("GET /stats", c.getStats)
	mux.HandleFunc("GET /metrics", c.metrics)
	mux.HandleFunc("POST /stop", c.stop)
	mux.HandleFunc("POST /pause", c.saver.servePause)
	mux.HandleFunc("POST /resume", c.saver.serveResume)
	mux.HandleFunc("POST /snapshot", c.saver.serveSnapshot)
	mux.HandleFunc("POST /migrate", c.saver.serveMigrate)
	mux.HandleFunc("POST /kill", c.kill)
	mux.HandleFunc("POST /agent", c.joinAgent)
	mux.HandleFunc("POST /console", c.joinConsole)
	mux.HandleFunc("POST /gdb", c.joinGDB)
	mux.HandleFunc("POST /disks/resize", c.resize)
	mux.HandleFunc("GET /ports", c.listPorts)
	mux.HandleFunc("POST /ports", c.addPort)
	mux.HandleFunc("DELETE /ports", c.removePort)
	mux.HandleFunc("GET /nics", c.listNICs)
	mux.HandleFunc("POST /nics/link", c.setLink)
	return mux
}

func (c *control) close() { c.server.Close() }

// inspect answers GET /vm.
func (c *control) inspect(w http.ResponseWriter, _ *http.Request) {
	info := c.dir.VM()
	info.Agent = c.agent != nil && c.agent.alive()
	info.Paused = c.saver.isPaused()
	info.Disks = c.saver.diskPaths()
	json.NewEncoder(w).Encode(info)
}

// kill ends the VM as pulling the plug does.
func (c *control) kill(http.ResponseWriter, *http.Request) { c.end() }

// stop asks the guest to shut down: by its agent, or by the power button. A command
// is asked to end, which ends the VM.
func (c *control) stop(w http.ResponseWriter, r *http.Request) {
	if c.command {
		unix.Kill(os.Getpid(), unix.SIGTERM) // which goes on to the command
		return
	}
	if c.agent != nil && c.agent.alive() {
		if err := c.agent.client().Shutdown(r.Context()); err == nil {
			return
		}
	}
	c.machine.PressPowerButton()
}

func (c *control) resize(w http.ResponseWriter, r *http.Request) {
	var req resizeRequest
	if !decode(w, r, &req) {
		return
	}
	for _, d := range c.disks {
		if d.path != req.Path {
			continue
		}
		size, err := req.newSize(d.device.Size())
		if err == nil {
			err = d.device.Resize(size)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
		return
	}
	http.Error(w, "this VM has no disk "+req.Path, http.StatusNotFound)
}

// maxBody bounds what is read of a request or an answer, in bytes.
const maxBody = 1 << 20

// decode reads a request's body; false if it was answered with an error.
func decode(w http.ResponseWriter, r *http.Request, to any) bool {
	err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

// askResize has a VM resize one of its disks.
func askResize(ctx context.Context, vm api.VM, req resizeRequest) error {
	path, err := realPath(req.Path)
	if err != nil {
		return err
	}
	req.Path = path
	return askVM(ctx, vm, http.MethodPost, "/disks/resize", req, nil)
}

// dialVM connects to a VM's control socket.
func dialVM(ctx context.Context, vm api.VM) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", registry.User().Socket(vm.Name))
}

// askVM sends a request to a VM; the answer goes to answer, if that is not nil.
func askVM(ctx context.Context, vm api.VM, method, path string, request, answer any) error {
	return talk(ctx, vm, method, path, request, func(r io.Reader) error {
		if answer == nil {
			return nil
		}
		return json.NewDecoder(io.LimitReader(r, maxBody)).Decode(answer)
	})
}

// follow sends a request whose answer is lines, and calls each with them until it
// returns false.
func follow(ctx context.Context, vm api.VM, path string, request any, each func(line []byte) (more bool, err error)) error {
	return talk(ctx, vm, http.MethodPost, path, request, func(r io.Reader) error {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if more, err := each(lines.Bytes()); err != nil || !more {
				return err
			}
		}
		return fmt.Errorf("VM %q has ended", vm.Name)
	})
}

// talk sends a request to a VM and has its answer read, unless that is an error.
func talk(ctx context.Context, vm api.VM, method, path string, request any, read func(io.Reader) error) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialVM(ctx, vm)
	}}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, method, "http://vmm"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(response.Body, maxBody))
		return errors.New(strings.TrimSpace(string(b)))
	}
	return read(response.Body)
}

// realPath makes a path absolute and free of symbolic links.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
