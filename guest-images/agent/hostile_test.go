package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

// answering returns a client of a guest that answers each request as it likes.
func answering(t *testing.T, answer func(*Link)) *Client {
	return &Client{Dial: func(context.Context) (net.Conn, error) {
		a, b := pair(t)
		go func() {
			defer b.Close()
			l := NewLink(b)
			var r Request
			if l.ReceiveJSON(FrameRequest, &r) == nil {
				answer(l)
			}
		}()
		return a, nil
	}}
}

// TestHostileAnswers: what comes in the place of a layer, a root or a list of changes is an error of one short line.
func TestHostileAnswers(t *testing.T) {
	record := func(s string) func(*Link) {
		return func(l *Link) {
			io.WriteString(writer{l, FrameStdout}, s)
			l.Send(FrameStdout, nil)
			l.SendJSON(FrameReply, Reply{})
			l.Receive()
		}
	}
	streams := map[string]func(*Link){
		"nothing":       func(*Link) {},
		"another frame": func(l *Link) { l.Send(FrameHello, []byte("{}")); l.Receive() },
		"no length":     func(l *Link) { l.rw.Write([]byte{FrameStdout, 1}) },
		"a frame too long": func(l *Link) {
			l.rw.Write(binary.LittleEndian.AppendUint32([]byte{FrameStdout}, MaxFrame+1))
			l.Receive()
		},
		"cut off": func(l *Link) {
			l.rw.Write(append(binary.LittleEndian.AppendUint32([]byte{FrameStdout}, 100), make([]byte, 50)...))
		},
		"no end":               func(l *Link) { l.Send(FrameStdout, []byte("A/x\x00")) },
		"refused without word": func(l *Link) { l.SendJSON(FrameReply, Reply{}); l.Receive() },
		"refused without JSON": func(l *Link) { l.Send(FrameReply, []byte("{")); l.Receive() },
		"refused at length": func(l *Link) {
			l.SendJSON(FrameReply, Reply{Error: strings.Repeat("no.\nvmm: all is well\r\n", 2000)})
			l.Receive()
		},
		"refused afterwards": func(l *Link) {
			l.Send(FrameStdout, nil)
			l.SendJSON(FrameReply, Reply{Error: strings.Repeat("no\n", 2000)})
			l.Receive()
		},
		"no word afterwards": func(l *Link) { l.Send(FrameStdout, nil) },
	}
	lists := map[string]func(*Link){
		"a kind that there is not": record("X/x\x00"),
		"a path from elsewhere":    record("A../x\x00"),
		"an empty record":          record("\x00"),
		"a record without end":     record("A/x"),
		"a path without end":       record("A/" + strings.Repeat("x", 1<<20)),
	}
	check := func(name string, err error) {
		t.Helper()
		if err == nil || err.Error() == "" || strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 2*maxSaid {
			t.Errorf("%s: %.200v", name, err)
		}
	}
	none := func(Change) error { return nil }
	for name, answer := range streams {
		c := answering(t, answer)
		check(name+", a layer", c.GetLayer(t.Context(), io.Discard, true))
		check(name+", a root", c.GetRoot(t.Context(), io.Discard))
		check(name+", changes", c.Changes(t.Context(), none))
	}
	for name, answer := range lists {
		check(name, answering(t, answer).Changes(t.Context(), none))
	}
	if x, err := answering(t, func(l *Link) { l.SendJSON(FrameExit, Exit{Status: 126, Error: "a\nvmm: b"}) }).Exec(t.Context(), Exec{}, Streams{}); err != nil || x.Error != "a vmm: b" {
		t.Errorf("a command that did not start: %+v, %v", x, err)
	}
}

// TestEndlessAnswer: what comes without end ends with who takes it, and with who waits for it.
func TestEndlessAnswer(t *testing.T) {
	gone := make(chan error, 2)
	endless := answering(t, func(l *Link) {
		part := bytes.Repeat([]byte("A/x\x00"), MaxFrame/8)
		for {
			if err := l.Send(FrameStdout, part); err != nil {
				gone <- err
				return
			}
		}
	})
	enough := errors.New("enough")
	if err := endless.GetLayer(t.Context(), limited{enough}, false); !errors.Is(err, enough) {
		t.Errorf("a layer: %v", err)
	}
	<-gone
	if err := endless.Changes(t.Context(), func(Change) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("changes: %v", err)
	}
	<-gone
	ctx, cancel := context.WithCancelCause(t.Context())
	silent := answering(t, func(l *Link) { cancel(enough); l.Receive() })
	if err := silent.GetRoot(ctx, io.Discard); !errors.Is(err, enough) {
		t.Errorf("a guest that says nothing: %v", err)
	}
}

// limited takes nothing.
type limited struct{ err error }

// Write implements io.Writer.
func (l limited) Write([]byte) (int, error) { return 0, l.err }
