package migration

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"vmm/machine"
)

const testSize = machine.MinMemory

// frame is one as a source sends it.
func frame(kind byte, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(payload)))
	return append(b, payload...)
}

func helloFrame(t testing.TB, h Hello) []byte {
	t.Helper()
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return frame(frameHello, b)
}

// receive has a destination take what a source sends.
func receive(sent []byte, token string) (*Destination, error) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	answered := make(chan struct{})
	go func() {
		io.ReadFull(theirs, make([]byte, frameHeader)) // all of the first write but a message
		close(answered)
		io.Copy(io.Discard, theirs)
	}()
	go func() {
		theirs.Write(sent)
		select {
		case <-answered:
		case <-time.After(100 * time.Millisecond): // what is no greeting gets no answer
		}
		theirs.Close()
	}()
	d, err := Accept(context.Background(), ours, token)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d, d.Receive(context.Background())
}

func TestReceive(t *testing.T) {
	hello := helloFrame(t, Hello{Version: Version, Token: "secret", Memory: testSize})
	page := bytes.Repeat([]byte{7}, pageSize)
	at := func(off uint64, rest ...byte) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, off), rest...)
	}
	final := frame(frameFinal, []byte(`{"config":{},"state":{"version":1}}`))
	whole := bytes.Join([][]byte{hello, frame(framePages, at(pageSize, page...)), frame(framePages, at(5*pageSize, page...)),
		frame(frameZeros, binary.LittleEndian.AppendUint64(at(5*pageSize), pageSize)), final}, nil)
	d, err := receive(whole, "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Memory.Close()
	ram := d.Memory.RAM()[0]
	if !bytes.Equal(ram[pageSize:2*pageSize], page) || ram[5*pageSize] != 0 || d.Final.State.Version != 1 {
		t.Error("not what was sent")
	}
	if _, err := receive(whole, "another"); err == nil {
		t.Error("any key will do")
	}
	for name, bad := range map[string][]byte{
		"beyond memory":  append(bytes.Clone(hello), frame(framePages, at(testSize-100, page...))...),
		"wraps around":   append(bytes.Clone(hello), frame(frameZeros, binary.LittleEndian.AppendUint64(at(pageSize), 1<<63))...),
		"no state":       append(bytes.Clone(hello), frame(frameFinal, []byte(`{}`))...),
		"no frame":       append(bytes.Clone(hello), 99, 0, 0, 0, 0),
		"short":          append(bytes.Clone(hello), frame(framePages, []byte{1})...),
		"cut off":        whole[:len(whole)-5],
		"other version":  helloFrame(t, Hello{Version: Version + 1, Token: "secret", Memory: testSize}),
		"absurd memory":  helloFrame(t, Hello{Version: Version, Token: "secret", Memory: 1 << 60}),
		"huge JSON":      {frameHello, 0xff, 0xff, 0xff, 0xff},
		"says an error":  frame(frameError, []byte("no")),
		"state of chaos": append(bytes.Clone(hello), frame(frameFinal, []byte(`{"state":[]}`))...),
	} {
		if _, err := receive(bad, "secret"); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	var remote RemoteError
	// Its words do not look like somebody else's.
	if _, err := receive(frame(frameError, []byte("no\r\nvmm: the key is\tanother")), "secret"); !errors.As(err, &remote) || err.Error() != "the other side says: no vmm: the key is another" {
		t.Errorf("an error of the source: %q", err)
	}
}

// FuzzReceive takes whatever a source sends.
func FuzzReceive(f *testing.F) {
	hello := helloFrame(f, Hello{Version: Version, Memory: testSize})
	f.Add(frame(framePages, make([]byte, 8+pageSize)))
	f.Add(frame(frameZeros, make([]byte, 16)))
	f.Add(frame(frameFinal, []byte(`{"config":{},"state":{"version":1}}`)))
	f.Fuzz(func(_ *testing.T, sent []byte) {
		if d, err := receive(append(bytes.Clone(hello), sent...), ""); err == nil {
			d.Memory.Close()
		}
	})
}
