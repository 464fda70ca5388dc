package agent

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// In a busy guest the reader may come only after the time that an output has once its
// command has ended. What was written before then is still the command's output.
func TestLateReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // something that the command left behind
	want := strings.Repeat("written before the end\n", 2000)
	if _, err := w.WriteString(want); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	close(ended)
	r.SetReadDeadline(time.Unix(1, 0))
	var got bytes.Buffer
	copyOutput(&got, r, ended)
	if got.String() != want {
		t.Errorf("%d bytes arrived of %d", got.Len(), len(want))
	}
}
