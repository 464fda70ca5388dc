// Package agent is how the host reaches into a guest: both sides of a small
// protocol over vsock. Server runs in the guest, as a part of the default guest's
// init or as a service of a distribution; Client is the host's side.
//
// The agent connects to Port of the host and says Hello. For each request the
// host connects to Port of the guest; frames go both ways on that connection,
// and the first is a Request.
package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// Version changes when older hosts or guests would misunderstand.
	Version = 1
	// Port is where host and guest listen.
	Port = 10001
)

// MismatchError is the error for an agent of another Version.
type MismatchError struct{ Guest int }

// Error implements error.
func (e *MismatchError) Error() string {
	return fmt.Sprintf("the guest's agent speaks version %d of the protocol, this vmm version %d: install this vmm's agent in the guest",
		e.Guest, Version)
}

// Hello is the agent's first frame to the host, and Welcome the answer.
type Hello struct {
	Version int `json:"version"`
}

// Welcome is the host's answer to Hello.
type Welcome struct {
	Version int       `json:"version"`
	Now     time.Time `json:"now"` // to which the guest sets its clock
}

// Operations of a Request.
const (
	OpExec     = "exec"
	OpPut      = "copy in"  // a tar archive follows, in frames of FrameStdin
	OpGet      = "copy out" // a tar archive is the answer, in frames of FrameStdout
	OpChanges  = "changes"  // the answer, in frames of FrameStdout, is each change's kind, path and a zero
	OpLayer    = "layer"    // a tar archive is the answer, as with OpGet
	OpRoot     = "root"     // likewise
	OpTime     = "time"
	OpSync     = "sync"
	OpShutdown = "shutdown"
	OpSetup    = "setup"
)

// Request is the first frame of a connection.
type Request struct {
	Version int       `json:"version"`
	Op      string    `json:"op"`
	Exec    *Exec     `json:"exec,omitempty"`
	In      *copyIn   `json:"in,omitempty"`     // of OpPut
	Out     *copyOut  `json:"out,omitempty"`    // of OpGet
	Pause   bool      `json:"pause,omitempty"`  // of OpLayer: all processes stop meanwhile
	Now     time.Time `json:"now,omitzero"`     // of OpTime
	Reboot  bool      `json:"reboot,omitempty"` // of OpShutdown
	// Setup is done before the operation, or is all of OpSetup.
	Setup *Setup `json:"setup,omitempty"`
}

// copyIn says where an archive comes to.
type copyIn struct {
	To string `json:"to"` // an absolute path, as it was written
	// Top is what the archive is of, and the only name at its top. If it is empty, all is
	// taken as it is called, to a directory.
	Top     string `json:"top,omitempty"`
	Content bool   `json:"content,omitempty"` // of a directory: what is in it, and not itself
}

// copyOut says what an archive is to be of.
type copyOut struct {
	From   string `json:"from"` // an absolute path, as it was written
	Top    string `json:"top"`  // what it is called in the archive
	Follow bool   `json:"follow,omitempty"`
}

// Setup is what a guest that was restored does not know yet.
type Setup struct {
	Now     time.Time `json:"now"`               // for its clock
	Entropy []byte    `json:"entropy,omitempty"` // for its random numbers
	// Hostname, MachineID and MACs, by interface, are those of a copy; without them
	// the guest stays who it is.
	Hostname  string            `json:"hostname,omitempty"`
	MachineID string            `json:"machineID,omitempty"`
	MACs      map[string]string `json:"macs,omitempty"`
	// Renew has the guest ask its DHCP server again, which has something new.
	Renew bool `json:"renew,omitempty"`
	// Config is for the guest's init: what it makes of Server.Setup.
	Config json.RawMessage `json:"config,omitempty"`
}

// Exec is a command to run.
type Exec struct {
	Argv []string `json:"argv"`
	// Env is added to PATH, HOME, USER, LOGNAME and SHELL, and wins over them.
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`  // the user's home if empty
	User string   `json:"user,omitempty"` // USER or UID, with :GROUP or :GID; root if empty
	TTY  bool     `json:"tty,omitempty"`
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`
}

// Exit is how a command ended.
type Exit struct {
	Status int    `json:"status"`           // as a shell has it: 128 and more after a signal, 126 and 127 if it could not start
	Signal int    `json:"signal,omitempty"` // that killed it
	Error  string `json:"error,omitempty"`  // why it could not start
}

// Reply ends every request but OpExec, which an Exit ends.
type Reply struct {
	Error string `json:"error,omitempty"`
}

// Kinds of frames. Each frame is its kind, the size of its payload as 32 bits,
// little-endian, and the payload.
const (
	FrameHello   = 1 // JSON: Hello, Welcome
	FrameRequest = 2 // JSON: Request
	FrameReply   = 3 // JSON: Reply
	FrameExit    = 4 // JSON: Exit
	FrameStdin   = 5 // an empty one is its end
	FrameStdout  = 6
	FrameStderr  = 7
	FrameResize  = 8  // rows and columns, 16 bits each
	FrameSignal  = 9  // its number, one byte
	FrameTaken   = 10 // the command has taken one frame of its input
)

// inputWindow is how many frames of a command's input may be on their way: a
// command that reads nothing must not keep signals from it.
const inputWindow = 8

const (
	frameHeader = 5
	// MaxFrame bounds a payload, in bytes.
	MaxFrame = 64 << 10
)

// errFrame is the error for bytes that are no frames.
var errFrame = errors.New("the agent's protocol is broken")

// Link sends and receives frames on a connection. Receive serves one goroutine,
// Send any.
type Link struct {
	rw  io.ReadWriter
	in  [frameHeader + MaxFrame]byte
	mu  sync.Mutex // of out
	out [frameHeader + MaxFrame]byte
}

// NewLink returns a link on a connection.
func NewLink(rw io.ReadWriter) *Link { return &Link{rw: rw} }

// Receive returns the next frame, whose payload is valid until the next call.
func (l *Link) Receive() (kind byte, payload []byte, err error) {
	if _, err := io.ReadFull(l.rw, l.in[:frameHeader]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(l.in[1:])
	if n > MaxFrame {
		return 0, nil, errFrame
	}
	payload = l.in[frameHeader : frameHeader+n]
	if _, err := io.ReadFull(l.rw, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return l.in[0], payload, nil
}

// Send sends a frame of at most MaxFrame bytes.
func (l *Link) Send(kind byte, payload []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out[0] = kind
	binary.LittleEndian.PutUint32(l.out[1:], uint32(len(payload)))
	n := frameHeader + copy(l.out[frameHeader:], payload)
	_, err := l.rw.Write(l.out[:n])
	return err
}

// SendJSON sends a value.
func (l *Link) SendJSON(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxFrame {
		return fmt.Errorf("a request of %d KiB: at most %d", len(b)>>10, MaxFrame>>10)
	}
	return l.Send(kind, b)
}

// ReceiveJSON receives a value, which must be the next frame.
func (l *Link) ReceiveJSON(kind byte, v any) error {
	k, b, err := l.Receive()
	if err != nil {
		return err
	}
	if k != kind {
		return errFrame
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %v", errFrame, err)
	}
	return nil
}

// packetFrame is the payload of a frame that is one packet of Linux's vsock with its header, and
// not two.
const packetFrame = 64<<10 - frameHeader

// writer sends what is written as frames of one kind.
type writer struct {
	l    *Link
	kind byte
}

// Write implements io.Writer.
func (w writer) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		k := min(len(p)-n, packetFrame)
		if err = w.l.Send(w.kind, p[n:n+k]); err == nil {
			n += k
		}
	}
	return n, err
}

// reader is the payloads of frames of one kind, up to an empty one. In their place
// there may be a Reply, which says why they do not come.
type reader struct {
	l       *Link
	kind    byte
	left    []byte
	done    bool
	refused error // what the Reply says
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		if r.done {
			return 0, io.EOF
		}
		kind, b, err := r.l.Receive()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		switch {
		case err != nil || kind == r.kind:
		case kind == FrameReply:
			r.refused = refusal(b)
			err = r.refused
		default:
			err = errFrame
		}
		if err != nil {
			return 0, err
		}
		r.left, r.done = b, len(b) == 0
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}
