package cli

import (
	"io"
	"os"
	"sync"

	"vmm/vm/registry"
)

// logSize is where a log begins anew; the one before it is kept, with
// registry.OldLog at the end of its name.
const logSize = 4 << 20

// logWriter is a log of bounded size.
type logWriter struct {
	path string
	mu   sync.Mutex
	file *os.File
	size int64
}

func newLog(path string) (*logWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	return &logWriter{path: path, file: f}, err
}

// Write implements io.Writer.
func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size += int64(len(p)); l.size > logSize {
		if err := os.Rename(l.path, l.path+registry.OldLog); err == nil {
			if f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600); err == nil {
				l.file.Close()
				l.file, l.size = f, int64(len(p))
			}
		}
	}
	return l.file.Write(p)
}

func (l *logWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
}

// consoleHub is the console of a VM in the background: a log, and the terminals
// that are attached to it.
type consoleHub struct {
	log *logWriter
	in  *io.PipeReader
	w   *io.PipeWriter

	mu       sync.Mutex
	attached map[*attachment]bool
}

// attachment is one terminal. What it does not take in time is lost to it.
type attachment struct{ out chan []byte }

// backlog is how many pieces of output may wait for a terminal.
const backlog = 1024

func newConsoleHub(path string) (*consoleHub, error) {
	log, err := newLog(path)
	if err != nil {
		return nil, err
	}
	h := &consoleHub{log: log, attached: map[*attachment]bool{}}
	h.in, h.w = io.Pipe()
	return h, nil
}

// Write implements io.Writer: it is what the guest says.
func (h *consoleHub) Write(p []byte) (int, error) {
	h.log.Write(p)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.attached) == 0 {
		return len(p), nil
	}
	b := append([]byte(nil), p...)
	for a := range h.attached {
		select {
		case a.out <- b:
		default:
		}
	}
	return len(p), nil
}

// attach connects a terminal until it has said all that it will, or cannot be written
// to. What the console has said until then, it still gets.
func (h *consoleHub) attach(rw io.ReadWriter) {
	a := &attachment{make(chan []byte, backlog)}
	h.mu.Lock()
	h.attached[a] = true
	h.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(h.w, rw)
	}()
	for {
		select {
		case b := <-a.out:
			if _, err := rw.Write(b); err == nil {
				continue
			}
		case <-done:
		}
		break
	}
	h.mu.Lock()
	delete(h.attached, a)
	h.mu.Unlock()
	for {
		select {
		case b := <-a.out:
			if _, err := rw.Write(b); err == nil {
				continue
			}
		default:
		}
		return
	}
}

// close ends the console.
func (h *consoleHub) close() {
	h.w.Close()
	h.in.Close()
	h.log.close()
}
