package vm

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmm/internal/paths"
	"vmm/internal/tail"
	"vmm/storage/share"
)

// TestFileInShare: neither the console nor a port leads to where the guest can write.
func TestFileInShare(t *testing.T) {
	s := shares{saved: []savedShare{{Dir: "/nowhere", Options: share.Options{ReadOnly: true}}, {Dir: t.TempDir()}}}
	guest := s.writable()
	if len(guest) != 1 {
		t.Fatalf("the guest can write to %v", guest)
	}
	e := Endpoint{File: filepath.Join(guest[0], "file")}
	var bad *paths.GuestError
	if _, err := openConsole(e, nil, guest); !errors.As(err, &bad) {
		t.Errorf("the console: %v", err)
	}
	if _, err := openPorts([]Port{{Name: "a", To: e}}, nil, guest); !errors.As(err, &bad) {
		t.Errorf("a port: %v", err)
	}
	var c Config
	if _, err := openNetworks(&c, nil, &options{capture: e.File}, guest); !errors.As(err, &bad) {
		t.Errorf("a capture: %v", err)
	}
	if _, err := os.Lstat(e.File); err == nil {
		t.Error("the file was made")
	}
}

// TestEndpoints opens sockets and files.
func TestEndpoints(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	e, err := openEndpoint(Endpoint{Socket: path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openEndpoint(Endpoint{Socket: path}, nil); err == nil {
		t.Error("two ends on one socket")
	}
	e.Write([]byte("nobody listens"))
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	if b, err := io.ReadAll(io.LimitReader(e.input(), 1)); err != nil || string(b) != "x" {
		t.Errorf("the client's byte came as %q, %v", b, err)
	}
	e.Write([]byte("hello"))
	if b, err := io.ReadAll(io.LimitReader(c, 5)); err != nil || string(b) != "hello" {
		t.Errorf("the client got %q, %v", b, err)
	}
	e.close() // with a client
	c.Close()
	if e, err = openEndpoint(Endpoint{Socket: path}, nil); err != nil {
		t.Errorf("after the first is gone: %v", err)
	} else {
		e.close()
	}
	if _, err := openEndpoint(Endpoint{File: t.TempDir() + "/none/file"}, nil); err == nil {
		t.Error("a file in no directory")
	}
	if _, err := openEndpoint(Endpoint{File: "a", Socket: "b"}, nil); err == nil {
		t.Error("two ends at once")
	}
}

// TestSilentClient: a client that does not read holds up neither the guest's device nor the
// VM's end.
func TestSilentClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	e, err := openEndpoint(Endpoint{Socket: path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	if _, err := io.ReadFull(e.input(), make([]byte, 1)); err != nil { // it is taken
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range 64 {
			e.Write(make([]byte, 1<<20))
		}
	}()
	<-written
	go func() { e.Write(make([]byte, 64<<20)) }()
	e.close()
}

// TestConsole sends what the guest says everywhere at once.
func TestConsole(t *testing.T) {
	var out bytes.Buffer
	c, err := openConsole(Endpoint{}, &out, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	c.send = func(b []byte) error { got <- bytes.Clone(b); return nil }
	near, far := net.Pipe()
	ended := make(chan struct{})
	attached := make(chan struct{})
	go func() { c.attach(far, ended); close(attached) }()
	near.Write([]byte("ls")) // which is taken once it is attached
	if b := <-got; string(b) != "ls" {
		t.Errorf("the guest got %q", b)
	}
	c.Write([]byte("one\r\ntwo\r\n"))
	if b, err := io.ReadAll(io.LimitReader(near, 10)); err != nil || string(b) != "one\r\ntwo\r\n" {
		t.Errorf("the attached terminal got %q, %v", b, err)
	}
	close(ended)
	<-attached
	c.Write([]byte(strings.Repeat("x", 3*tail.Size) + "\nthree\n"))
	if out.Len() != 10+3*tail.Size+7 {
		t.Errorf("%d bytes in all", out.Len())
	}
	if got := tail.Lines(c.last.String(), 1); len(got) != 1 || got[0] != "three" {
		t.Errorf("the last line is %q", got)
	}
}
