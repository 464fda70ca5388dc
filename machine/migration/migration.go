// Package migration moves a running machine to another process over a connection.
//
// The source sends what it is, then memory, round by round, while the guest goes
// on and writes to it again; then it stops, and sends the rest and the state. The
// destination makes a machine of that and says that it is ready; only when the
// source answers that it has let go does it run.
package migration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"vmm/machine"
)

// Version changes when older ends would misunderstand.
const Version = 1

// Kinds of frames. Each frame is its kind, the size of its payload as 32 bits,
// little-endian, and the payload.
const (
	frameHello   = 1 // JSON: Hello
	frameAccept  = 2
	framePages   = 3 // offset in RAM as 64 bits, and the pages
	frameZeros   = 4 // offset and number of bytes, 64 bits each: pages that are zero
	frameFinal   = 5 // JSON: Final
	frameReady   = 6
	frameGo      = 7
	frameRunning = 8
	frameError   = 9 // a message
)

const (
	frameHeader = 5
	// maxJSON bounds Final, maxSmall a Hello, which is read of anybody, and what has no
	// payload, and maxPages the pages of a frame, in bytes.
	maxJSON  = 64 << 20
	maxSmall = 64 << 10
	maxPages = 256 << 10
	pageSize = 4096
)

// Hello is what the source is.
type Hello struct {
	Version int    `json:"version"`
	Token   string `json:"token,omitempty"` // that the destination has asked for
	VMM     string `json:"vmm"`             // the version of the program
	Memory  uint64 `json:"memory"`          // bytes
	CPUs    int    `json:"cpus"`
	Name    string `json:"name"` // the VM's
}

// Final is the machine without its memory.
type Final struct {
	Config json.RawMessage `json:"config"` // how it is made: package vm's
	State  *machine.State  `json:"state"`
}

// The errors of moving.
var (
	errProtocol = errors.New("the other side does not speak vmm's protocol of migration")
	// ErrUnknown is the error of a source that does not know whether the destination
	// runs the machine now.
	ErrUnknown = errors.New("the connection broke just when the VM was handed over")
)

// RemoteError is the error that the other side has sent in the place of what was awaited.
type RemoteError string

// Error implements error. It is one line, whatever the other side wants it to look like.
func (e RemoteError) Error() string {
	return "the other side says: " + strings.Join(strings.Fields(string(e)), " ")
}

// silence is how long the other side may say nothing when it is its turn.
const silence = 60 * time.Second

// link sends and receives frames.
type link struct {
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
}

func newLink(c net.Conn) *link {
	return &link{c, bufio.NewReaderSize(c, 1<<20), bufio.NewWriterSize(c, 1<<20)}
}

// within does something that ends when ctx does, with the connection and with ctx's error.
// But ErrUnknown stays.
func (l *link) within(ctx context.Context, do func() error) error {
	defer context.AfterFunc(ctx, func() { l.conn.Close() })()
	err := do()
	if err != nil && ctx.Err() != nil && !errors.Is(err, ErrUnknown) {
		err = context.Cause(ctx)
	}
	return err
}

func (l *link) send(kind byte, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	var head [frameHeader]byte
	head[0] = kind
	binary.LittleEndian.PutUint32(head[1:], uint32(n))
	l.conn.SetWriteDeadline(time.Now().Add(silence))
	if _, err := l.w.Write(head[:]); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := l.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) sendJSON(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxJSON {
		return fmt.Errorf("%d MiB of state: at most %d", len(b)>>20, maxJSON>>20)
	}
	return errors.Join(l.send(kind, b), l.w.Flush())
}

// signal sends a frame without a payload.
func (l *link) signal(kind byte) error { return errors.Join(l.send(kind), l.w.Flush()) }

// next reads a frame's kind and size. What the other side says instead is an error.
func (l *link) next() (kind byte, size int, err error) {
	var head [frameHeader]byte
	l.conn.SetReadDeadline(time.Now().Add(silence))
	if _, err := io.ReadFull(l.r, head[:]); err != nil {
		return 0, 0, err
	}
	kind, size = head[0], int(binary.LittleEndian.Uint32(head[1:]))
	if kind == frameError {
		b, err := l.payload(min(size, maxSmall))
		if err != nil {
			return 0, 0, err
		}
		return 0, 0, RemoteError(b)
	}
	return kind, size, nil
}

func (l *link) payload(size int) ([]byte, error) {
	if size > maxJSON {
		return nil, errProtocol
	}
	var b bytes.Buffer // it grows with what comes, not with what is announced
	_, err := io.CopyN(&b, l.r, int64(size))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.Bytes(), err
}

// want reads a frame of a kind; to is nil for one without a payload.
func (l *link) want(kind byte, to any) error {
	k, size, err := l.next()
	if err != nil {
		return err
	}
	if k != kind || size > maxSmall {
		return errProtocol
	}
	b, err := l.payload(size)
	if err != nil || to == nil {
		return err
	}
	return unmarshal(b, to)
}

func unmarshal(b []byte, to any) error {
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%w: %v", errProtocol, err)
	}
	return nil
}
