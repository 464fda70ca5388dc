package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
)

// TestCommandInput: what a command reads.
func TestCommandInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	if in := commandInput(ctx, false, false, r); in != nil {
		t.Errorf("without -i it reads %v", in)
	}
	silent := commandInput(ctx, false, true, r)
	cancel()
	if n, err := silent.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a terminal without input says %d, %v", n, err)
	}
	for _, c := range []struct {
		write  string
		closed bool
		warns  bool
	}{{"", false, false}, {"x", false, true}, {"", true, true}} {
		io.WriteString(w, c.write)
		if c.closed {
			w.Close()
		}
		var out bytes.Buffer
		if warnUnread(&out, r); (out.Len() > 0) != c.warns || bytes.Count(out.Bytes(), []byte("\n")) > 1 {
			t.Errorf("%+v: %q", c, out.String())
		}
	}
	if b, err := io.ReadAll(commandInput(t.Context(), true, false, r)); string(b) != "x" || err != nil {
		t.Errorf("with -i it reads %q, %v", b, err)
	}
	var out bytes.Buffer
	if warnUnread(&out, r); out.Len() > 0 {
		t.Errorf("what was read is told of: %s", out.String())
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if warnUnread(&out, null); out.Len() > 0 {
		t.Errorf("of no pipe: %s", out.String())
	}
}
