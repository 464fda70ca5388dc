package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmm/vm/api"
)

// TestImports: a program that only asks VMs needs nothing but the standard library.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); strings.Join(got, " ") != "vmm/vm/api vmm/vm/client" {
		t.Errorf("the client needs %q", got)
	}
}

// answers listens on a unix socket and answers every request with a text.
func answers(t *testing.T, text string) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 1<<16))
			io.WriteString(conn, text)
			conn.Close()
		}
	}()
	return New(socket)
}

// TestBadAnswers: what is not an answer is an error that tells why.
func TestBadAnswers(t *testing.T) {
	ctx := context.Background()
	head := func(status, rest string) string { return "HTTP/1.1 " + status + "\r\nConnection: close\r\n" + rest }
	for _, c := range []struct {
		answer string
		want   error // nil if any will do
	}{
		{"", api.ErrNotRunning},
		{head("200 OK", "Content-Length: 100\r\n\r\n{"), api.ErrNotRunning},
		{head("404 Not Found", "Content-Type: text/plain\r\n\r\n404 page not found\n"), ErrVersion},
		{head("409 Conflict", "\r\n{}"), ErrVersion},
		{head("409 Conflict", "\r\n"+`{"error":{"code":"paused","message":"x"}}`), api.ErrPaused},
		{head("409 Conflict", "\r\n"+`{"error":{"code":"new","message":"x"}}`), nil},
		{head("200 OK", "\r\nnonsense"), nil},
		{head("200 OK", "\r\n"+`{"name":"`+strings.Repeat("x", api.MaxBody)+`"}`), nil},
		{"nonsense\r\n\r\n", nil},
	} {
		client := answers(t, c.answer)
		_, inspect := client.Inspect(ctx)
		_, snapshot := client.Snapshot(ctx, api.SnapshotRequest{}, nil)
		_, gdb := client.DialGDB(ctx)
		for name, err := range map[string]error{"inspect": inspect, "snapshot": snapshot, "gdb": gdb} {
			upgraded := name == "gdb" && strings.Contains(c.answer, "200")
			lines := name == "snapshot" && strings.Contains(c.answer, "200")
			if err == nil || c.want != nil && !upgraded && !lines && !errors.Is(err, c.want) {
				t.Errorf("%s answered with %.60q: %v, want %v", name, c.answer, err, c.want)
			}
		}
	}
	// Lines without an end.
	client := answers(t, head("200 OK", "\r\n"+`{"progress":{"done":1,"total":2}}`+"\n"))
	if _, err := client.Migrate(ctx, api.MigrateRequest{}, nil); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("a migration without an end: %v", err)
	}
}

func TestGone(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "none"))
	_, dial := c.DialAgent(context.Background())
	for _, err := range []error{c.Pause(context.Background()), dial} {
		if !errors.Is(err, api.ErrNotRunning) {
			t.Errorf("err = %v", err)
		}
	}
}

// TestCause: a caller who does not wait any more is told its own cause.
func TestCause(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody answers
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(context.Background())
	c := New(l.Addr().String())
	results := make(chan error)
	go func() { results <- c.Stop(ctx) }()
	go func() { _, err := c.DialConsole(ctx); results <- err }()
	cancel(why)
	for range 2 {
		if err := <-results; !errors.Is(err, why) {
			t.Errorf("err = %v", err)
		}
	}
	if _, err := c.DialConsole(ctx); !errors.Is(err, why) {
		t.Errorf("err = %v", err)
	}
}

// TestMessage: a message names no URL, for there is none.
func TestMessage(t *testing.T) {
	c := answers(t, "nonsense\r\n\r\n")
	if err := c.do(context.Background(), http.MethodGet, api.PathVM, nil, nil); err == nil || strings.Contains(err.Error(), "http://") {
		t.Errorf("err = %v", err)
	}
}
