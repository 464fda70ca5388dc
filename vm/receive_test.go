package vm

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"vmm/machine"
	"vmm/machine/migration"
)

// TestProving: peers that say nothing, or anything but the key, keep nobody out, and are
// let go when somebody has come.
func TestProving(t *testing.T) {
	var mu sync.Mutex
	var refused []string
	var told sync.WaitGroup
	told.Add(1)
	r, key, err := Listen("tcp://127.0.0.1:0", func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if refused = append(refused, err.Error()); len(refused) == 1 {
			told.Done()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	address := r.Addr().String()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	silent := []net.Conn{dial(), dial()}
	frame := func(kind byte, n int, b []byte) []byte {
		return append(binary.LittleEndian.AppendUint32([]byte{kind}, uint32(n)), b...)
	}
	// One that announces 64 MiB is refused by that alone.
	huge := tls.Client(dial(), &tls.Config{InsecureSkipVerify: true})
	defer huge.Close()

	type found struct {
		d   *migration.Destination
		err error
	}
	got := make(chan found)
	go func() {
		d, err := r.accept(t.Context())
		got <- found{d, err}
	}()
	if _, err := huge.Write(frame(1, 64<<20, []byte("{"))); err != nil {
		t.Fatal(err)
	}
	told.Wait()
	hello := migration.Hello{Version: migration.Version, Name: "right", Memory: machine.MinMemory}
	conn, err := Dial(t.Context(), "tcp://"+address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := openPeer(t.Context(), conn, "tcp://"+address, key, &hello)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, _ := json.Marshal(hello)
	if _, err := c.Write(frame(1, len(b), b)); err != nil {
		t.Fatal(err)
	}
	f := <-got
	if f.err != nil || f.d.Hello.Name != "right" {
		t.Fatalf("%v, %v", f.d, f.err)
	}
	f.d.Close()
	for _, s := range silent {
		if b, err := io.ReadAll(s); len(b) > 0 && err == nil {
			t.Errorf("a silent peer was told %q", b)
		}
		s.Close()
	}
	if len(refused) != 1 {
		t.Errorf("refused: %q", refused)
	}
}

// TestProvingEnds: a Receiver that nobody needs any more ends although peers are silent.
func TestProvingEnds(t *testing.T) {
	for name, end := range map[string]func(*Receiver, context.CancelFunc){
		"closed":    func(r *Receiver, _ context.CancelFunc) { r.Close() },
		"cancelled": func(_ *Receiver, cancel context.CancelFunc) { cancel() },
	} {
		r, _, err := Listen("tcp://127.0.0.1:0", nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error)
		go func() {
			_, err := r.accept(ctx)
			got <- err
		}()
		end(r, cancel)
		if err := <-got; !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		cancel()
	}
}
