package vm

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// listener is a terminal that says nothing: what reads from it ends when it is told to.
type listener struct {
	io.Reader
	heard bytes.Buffer
	first chan bool // the first piece came
	more  chan bool // it can take more
}

// Write implements io.Writer.
func (l *listener) Write(p []byte) (int, error) {
	if l.heard.Len() == 0 {
		l.first <- true
		<-l.more
	}
	return l.heard.Write(p)
}

// TestLastWords: a terminal gets what the console had said when it was hung up on.
func TestLastWords(t *testing.T) {
	for range 50 {
		h, err := openConsole(Endpoint{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		in, w := io.Pipe()
		l := &listener{Reader: in, first: make(chan bool), more: make(chan bool)}
		done := make(chan bool)
		go func() {
			defer close(done)
			h.attach(l, nil)
		}()
		for attached := false; !attached; {
			h.mu.Lock()
			attached = len(h.attached) > 0
			h.mu.Unlock()
		}
		want := ""
		for i := range 20 {
			want += fmt.Sprintf("line %d\n", i)
			fmt.Fprintf(h, "line %d\n", i)
		}
		<-l.first
		w.Close() // while it has most of it still to come
		l.more <- true
		<-done
		if got := l.heard.String(); got != want {
			t.Fatalf("it heard %q", got)
		}
	}
}
