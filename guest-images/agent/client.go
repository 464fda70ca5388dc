package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Client is the host's side.
type Client struct {
	// Dial connects to Port of the guest.
	Dial func(context.Context) (net.Conn, error)
	// Before is done before each request; nil is nothing.
	Before *Setup
}

// Greet answers an agent's Hello on a connection, and returns when the agent has
// gone; ready is called when it can be used, or with a MismatchError.
func Greet(c net.Conn, ready func(error)) {
	defer c.Close()
	l := NewLink(c)
	var h Hello
	if l.ReceiveJSON(FrameHello, &h) != nil {
		return
	}
	if h.Version != Version {
		ready(&MismatchError{h.Version})
	}
	if l.SendJSON(FrameHello, Welcome{Version, time.Now()}) == nil && h.Version == Version {
		ready(nil)
	}
	l.Receive()
}

// Streams are the host's ends of a command's streams.
type Streams struct {
	In       io.Reader // nil is empty
	Out, Err io.Writer
	Resize   <-chan unix.Winsize
	Signals  <-chan os.Signal
}

// begin connects and sends a request. The connection ends with ctx.
func (c *Client) begin(ctx context.Context, r Request) (net.Conn, *Link, error) {
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	l := NewLink(conn)
	r.Version = Version
	if r.Setup == nil {
		r.Setup = c.Before
	}
	if err := l.SendJSON(FrameRequest, r); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, l, nil
}

// closeWith closes the connection when ctx ends, until the returned function is
// called.
func closeWith(ctx context.Context, c net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return func() {
		stop()
		c.Close()
	}
}

// Exec runs a command in the guest and returns how it ended.
func (c *Client) Exec(ctx context.Context, e Exec, s Streams) (Exit, error) {
	conn, l, err := c.begin(ctx, Request{Op: OpExec, Exec: &e})
	if err != nil {
		return Exit{}, err
	}
	defer closeWith(ctx, conn)()
	done := make(chan struct{})
	defer close(done)
	window := make(chan struct{}, inputWindow)
	go sendInput(l, s.In, window, done)
	go sendEvents(l, s, done)
	for {
		kind, b, err := l.Receive()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return Exit{}, lost(err)
		}
		switch kind {
		case FrameStdout:
			_, err = s.Out.Write(b)
		case FrameStderr:
			_, err = s.Err.Write(b)
		case FrameTaken:
			select {
			case <-window:
			default: // it says so too often
			}
		case FrameExit:
			var x Exit
			err := json.Unmarshal(b, &x)
			if x.Error != "" {
				x.Error = said(x.Error).Error()
			}
			return x, err
		case FrameReply: // it would not even look at it
			return Exit{}, refusal(b)
		}
		if err != nil { // as a command whose reader has gone
			return Exit{}, err
		}
	}
}

// ErrHungUp is that of an agent that goes in the midst of what it was asked for, as with its guest.
var ErrHungUp = errors.New("the guest's agent hung up")

// lost says more than EOF.
func lost(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrHungUp
	}
	return err
}

// refusal is the error in a Reply that comes in the place of something else.
func refusal(b []byte) error {
	var r Reply
	if json.Unmarshal(b, &r) != nil || r.Error == "" {
		return errFrame
	}
	return said(r.Error)
}

// maxSaid bounds what is shown of a guest's words, in bytes.
const maxSaid = 1000

// said is an error in the words of a guest, who may want them to look like several.
func said(words string) error {
	if len(words) > maxSaid {
		words = words[:maxSaid] + "…"
	}
	if err := errors.New(strings.Join(strings.Fields(words), " ")); err.Error() != ErrNotAlone.Error() {
		return err
	}
	return ErrNotAlone
}

// sendInput sends what is read, a window of frames at a time.
func sendInput(l *Link, in io.Reader, window chan<- struct{}, done <-chan struct{}) {
	buf := make([]byte, MaxFrame)
	for in != nil {
		n, err := in.Read(buf)
		if n > 0 {
			select {
			case window <- struct{}{}:
			case <-done:
				return
			}
			if l.Send(FrameStdin, buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	l.Send(FrameStdin, nil)
}

func sendEvents(l *Link, s Streams, done <-chan struct{}) {
	for {
		select {
		case w := <-s.Resize:
			b := binary.LittleEndian.AppendUint16(nil, w.Row)
			l.Send(FrameResize, binary.LittleEndian.AppendUint16(b, w.Col))
		case n := <-s.Signals:
			l.Send(FrameSignal, []byte{byte(n.(unix.Signal))})
		case <-done:
			return
		}
	}
}

// call does a request without streams.
func (c *Client) call(ctx context.Context, r Request) (Reply, error) {
	conn, l, err := c.begin(ctx, r)
	if err != nil {
		return Reply{}, err
	}
	defer closeWith(ctx, conn)()
	return reply(l)
}

func reply(l *Link) (Reply, error) {
	var r Reply
	if err := l.ReceiveJSON(FrameReply, &r); err != nil {
		return r, lost(err)
	}
	if r.Error != "" {
		return r, said(r.Error)
	}
	return r, nil
}

// Sync has the guest write out what it has not written yet.
func (c *Client) Sync(ctx context.Context) error {
	_, err := c.call(ctx, Request{Op: OpSync})
	return err
}

// SetTime sets the guest's clock to the host's.
func (c *Client) SetTime(ctx context.Context) error {
	_, err := c.call(ctx, Request{Op: OpTime, Now: time.Now()})
	return err
}

// Setup tells a restored guest what it does not know.
func (c *Client) Setup(ctx context.Context, s *Setup) error {
	_, err := c.call(ctx, Request{Op: OpSetup, Setup: s})
	return err
}

// Shutdown has the guest shut down.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.call(ctx, Request{Op: OpShutdown})
	return err
}
