package main

import (
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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/virtio/blk"
)

// control is the socket by which other commands reach a running VM: HTTP on a
// unix socket that only its user can open, named by the process.
type control struct {
	server http.Server
	path   string
	vm     vmInfo
	disks  []controlledDisk
	nets   *networks
}

// vmInfo says which VM it is.
type vmInfo struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

// controlledDisk is a disk that can be resized.
type controlledDisk struct {
	path   string // absolute, without symbolic links
	device *blk.Device
}

// runtimeDir is where sockets of the user's VMs are.
func runtimeDir() string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("vmm-%d", os.Getuid()))
	}
	return filepath.Join(dir, "vmm")
}

// makeRuntimeDir makes the directory of runtimeDir. In a directory for all, another
// user may have made it before, who could then listen in.
func makeRuntimeDir() error {
	dir := runtimeDir()
	if err := os.MkdirAll(dir, 0o700); err != nil || os.Getenv("XDG_RUNTIME_DIR") != "" {
		return err
	}
	parent := filepath.Dir(dir)
	var st unix.Stat_t
	if err := unix.Lstat(parent, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is another user's: set XDG_RUNTIME_DIR to a directory of yours", parent)
	}
	return nil
}

// controlPath is where the VM of a process listens.
func controlPath(pid int) string { return filepath.Join(runtimeDir(), fmt.Sprintf("%d.sock", pid)) }

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

// listenControl opens the socket of a VM.
func listenControl(name string, disks []controlledDisk, nets *networks) (*control, error) {
	pid := os.Getpid()
	c := &control{path: controlPath(pid), vm: vmInfo{name, pid}, disks: disks, nets: nets}
	if err := makeRuntimeDir(); err != nil {
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	os.Remove(c.path) // of an earlier process with this number
	l, err := net.Listen("unix", c.path)
	if err != nil {
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	if err := os.Chmod(c.path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /vm", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(c.vm) })
	mux.HandleFunc("POST /disks/resize", c.resize)
	mux.HandleFunc("GET /ports", c.listPorts)
	mux.HandleFunc("POST /ports", c.addPort)
	mux.HandleFunc("DELETE /ports", c.removePort)
	mux.HandleFunc("GET /nics", c.listNICs)
	mux.HandleFunc("POST /nics/link", c.setLink)
	c.server.Handler = mux
	c.server.ReadHeaderTimeout = 10 * time.Second
	go c.server.Serve(l)
	return c, nil
}

func (c *control) close() {
	c.server.Close()
	os.Remove(c.path)
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

// askResize has the VM of a process resize one of its disks.
func askResize(ctx context.Context, pid int, req resizeRequest) error {
	path, err := realPath(req.Path)
	if err != nil {
		return err
	}
	req.Path = path
	return askVM(ctx, pid, http.MethodPost, "/disks/resize", req, nil)
}

// askVM sends a request to the VM of a process; the answer goes to answer, if
// that is not nil.
func askVM(ctx context.Context, pid int, method, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", controlPath(pid))
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
	text := io.LimitReader(response.Body, maxBody)
	if response.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(text)
		return errors.New(strings.TrimSpace(string(b)))
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(text).Decode(answer)
}

// runningVMs are the user's VMs. Sockets of those that are gone are removed.
func runningVMs(ctx context.Context) []vmInfo {
	var out []vmInfo
	paths, _ := filepath.Glob(filepath.Join(runtimeDir(), "*.sock"))
	for _, path := range paths {
		pid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".sock"))
		if err != nil {
			continue
		}
		var vm vmInfo
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		err = askVM(ctx, pid, http.MethodGet, "/vm", nil, &vm)
		cancel()
		switch {
		case err == nil:
			out = append(out, vm)
		case errors.Is(err, unix.ECONNREFUSED):
			os.Remove(path)
		}
	}
	return out
}

// findVM returns the process of a running VM, by its name or number.
func findVM(ctx context.Context, name string) (int, error) {
	var found []string
	pid := 0
	for _, vm := range runningVMs(ctx) {
		if strconv.Itoa(vm.PID) == name {
			return vm.PID, nil
		}
		if vm.Name == name {
			pid = vm.PID
			found = append(found, strconv.Itoa(vm.PID))
		}
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("no VM %q is running: vmm run --name %s starts one", name, name)
	case 1:
		return pid, nil
	}
	return 0, fmt.Errorf("several VMs are called %q: give a process number instead: %s", name, strings.Join(found, ", "))
}

// realPath makes a path absolute and free of symbolic links.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
