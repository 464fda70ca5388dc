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
	"strings"
	"time"

	"vmm/virtio/blk"
)

// control is the socket by which other commands reach a running VM: HTTP on a
// unix socket that only its user can open, named by the process.
type control struct {
	server http.Server
	path   string
	disks  []controlledDisk
}

// controlledDisk is a disk that can be resized.
type controlledDisk struct {
	path   string // absolute, without symbolic links
	device *blk.Device
}

// controlPath is where the VM of a process listens.
func controlPath(pid int) string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("vmm-%d", os.Getuid()))
	}
	return filepath.Join(dir, "vmm", fmt.Sprintf("%d.sock", pid))
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

// listenControl opens the socket. A machine without disks has nothing to
// control yet.
func listenControl(disks []controlledDisk) (*control, error) {
	if len(disks) == 0 {
		return nil, nil
	}
	c := &control{path: controlPath(os.Getpid()), disks: disks}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return nil, err
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
	mux.HandleFunc("POST /disks/resize", c.resize)
	c.server.Handler = mux
	c.server.ReadHeaderTimeout = 10 * time.Second
	go c.server.Serve(l)
	return c, nil
}

func (c *control) close() {
	if c != nil {
		c.server.Close()
		os.Remove(c.path)
	}
}

func (c *control) resize(w http.ResponseWriter, r *http.Request) {
	var req resizeRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
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

// askResize has the VM of a process resize one of its disks.
func askResize(ctx context.Context, pid int, req resizeRequest) error {
	path, err := realPath(req.Path)
	if err != nil {
		return err
	}
	req.Path = path
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", controlPath(pid))
	}}}
	defer client.CloseIdleConnections()
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vmm/disks/resize", bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := client.Do(post)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
		return errors.New(strings.TrimSpace(string(b)))
	}
	return nil
}

// realPath makes a path absolute and free of symbolic links.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
