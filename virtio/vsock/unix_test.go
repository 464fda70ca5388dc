package vsock

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestUnix holds the two conventions of unix sockets, by an echo each way.
func TestUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "v")
	p := start(t, Options{Connect: ConnectUnix(path)})
	p.supply(16)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go p.dev.ServeUnix(l)

	u, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	fmt.Fprint(u, "CONNECT 52\nearly")
	h, _ := p.want(opRequest)
	p.send(header{srcPort: 52, dstPort: h.srcPort, op: opResponse}, nil)
	if _, data := p.want(opRW); string(data) != "early" {
		t.Errorf("the guest got %q", data)
	}
	p.send(header{srcPort: 52, dstPort: h.srcPort, op: opRW}, []byte("answer"))
	p.send(header{srcPort: 52, dstPort: h.srcPort, op: opShutdown, flags: shutdownSend}, nil)
	if b, err := io.ReadAll(u); err != nil || string(b) != fmt.Sprintf("OK %d\nanswer", h.srcPort) {
		t.Errorf("the host got %q, %v", b, err)
	}
	u.(*net.UnixConn).CloseWrite()
	p.want(opShutdown)

	for _, line := range []string{"CONNECT x\n", "CONNECT 99999999999\n", "GET / HTTP/1.1\n", string(make([]byte, 100))} {
		u, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(u, line)
		if b, _ := io.ReadAll(u); len(b) != 0 {
			t.Errorf("%q is answered with %q", line, b)
		}
		u.Close()
	}
	p.want(opShutdown) // of the first, both ways
}

// TestServeUnixEnds: no connection outlasts the listener, be it one that says nothing, one whose
// guest does not answer, or one whose guest is silent.
func TestServeUnixEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	p := start(t, Options{})
	p.supply(16)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.dev.ServeUnix(l)
	}()
	var conns []net.Conn
	for _, line := range []string{"", "CONNECT 1\n", "CONNECT 2\n"} {
		u, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		conns = append(conns, u)
		if line == "" {
			continue
		}
		io.WriteString(u, line)
		if h, _ := p.want(opRequest); h.dstPort == 2 {
			p.send(header{srcPort: 2, dstPort: h.srcPort, op: opResponse}, nil)
			if _, err := io.ReadFull(u, make([]byte, len("OK "))); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.Close()
	<-served
	for i, u := range conns {
		if _, err := io.ReadAll(u); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// TestWriteThrough: whatever the host's reader takes at once and what later, all
// comes in order.
func TestWriteThrough(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	l, err := net.Listen("unix", path+"_5")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := start(t, Options{Connect: ConnectUnix(path)})
	p.supply(16)
	p.connect()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 4<<20)
	rand.Read(data)
	got := make(chan []byte)
	go func() {
		var all []byte
		buf := make([]byte, 100_000)
		for len(all) < len(data) {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			if all = append(all, buf[:n]...); len(all)%7 == 0 {
				time.Sleep(time.Millisecond) // so that the socket is full at times
			}
		}
		got <- all
	}()
	var credit uint32 = bufAlloc
	chunk := slotSize - headerSize
	for sent := 0; sent < len(data); {
		n := min(chunk, len(data)-sent)
		for credit-uint32(sent) < uint32(n) {
			h, _ := p.want(opCreditUpdate)
			credit = h.fwdCnt + h.bufAlloc
		}
		p.rw(data[sent : sent+n])
		sent += n
	}
	if all := <-got; !bytes.Equal(all, data) {
		t.Errorf("%d bytes came, not those that were sent", len(all))
	}
}
