package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vmm/vm/api"
)

// TestRequests sends each request as the client does.
func TestRequests(t *testing.T) {
	ctx := context.Background()
	vm := &fakeVM{}
	_, c, socket := serve(t, vm)
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	asked := func(want ...string) {
		t.Helper()
		if did := vm.did(); !slices.Equal(did, want) {
			t.Errorf("the VM was asked %q, want %q", did, want)
		}
	}
	same := func(got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	info, err := c.Inspect(ctx)
	same(info, fakeOf, err)
	used, err := c.Stats(ctx)
	same(used, stats, err)
	asked("info", "stats")
	for name, do := range map[string]func(context.Context) error{"stop": c.Stop, "kill": c.Kill, "pause": c.Pause, "resume": c.Resume} {
		if err := do(ctx); err != nil {
			t.Error(err)
		}
		asked(name)
	}
	request := api.SnapshotRequest{Dir: "/d", Replace: true, Parent: "/p", Zstd: true, DiskCopy: true, Stop: true}
	wasSaved, err := c.Snapshot(ctx, request, nil)
	same(wasSaved, &saved, err)
	asked(fmt.Sprintf("snapshot %+v", request), "done")
	move := api.MigrateRequest{Address: "unix:/x", Key: "k", Downtime: time.Second}
	wasMoved, err := c.Migrate(ctx, move, nil)
	same(wasMoved, &moved, err)
	asked(fmt.Sprintf("migrate %+v", move), "done")
	size := api.ResizeRequest{Path: "/x", Sign: "+", Size: 1 << 40, Shrink: true}
	same(nil, nil, c.Resize(ctx, size))
	asked(fmt.Sprintf("resize %+v", size))
	ports, err := c.Ports(ctx)
	same(ports, []api.Port{port}, err)
	did, err := c.Publish(ctx, port)
	same(did, api.Port{UDP: true, Host: port.Host, Guest: port.Guest + 1}, err)
	same(nil, nil, c.Unpublish(ctx, port))
	asked("ports", "publish [::1]:8080:80/udp", "unpublish [::1]:8080:80/udp")
	nics, err := c.NICs(ctx)
	same(nics, []api.NIC{nic}, err)
	same(nil, nil, c.SetLink(ctx, 3, true))
	asked("nics", "link 3 true")
}

// TestErrors: errors.Is works across the socket, for each request that can fail.
func TestErrors(t *testing.T) {
	ctx := context.Background()
	vm := &fakeVM{}
	_, c, _ := serve(t, vm)
	requests := map[string]func() error{
		"stop": func() error { return c.Stop(ctx) }, "pause": func() error { return c.Pause(ctx) }, "resume": func() error { return c.Resume(ctx) },
		"snapshot":  func() error { _, err := c.Snapshot(ctx, api.SnapshotRequest{}, nil); return err },
		"migrate":   func() error { _, err := c.Migrate(ctx, api.MigrateRequest{}, nil); return err },
		"resize":    func() error { return c.Resize(ctx, api.ResizeRequest{}) },
		"publish":   func() error { _, err := c.Publish(ctx, port); return err },
		"unpublish": func() error { return c.Unpublish(ctx, port) }, "link": func() error { return c.SetLink(ctx, 0, true) },
		"agent":   func() error { _, err := c.DialAgent(ctx); return err },
		"console": func() error { _, err := c.DialConsole(ctx); return err },
		"gdb":     func() error { _, err := c.DialGDB(ctx); return err },
	}
	for _, progress := range [][]api.Progress{nil, {{Done: 1, Total: 2}}} {
		vm.progress = progress // an error after that is the last line of the answer
		for name, do := range requests {
			for _, e := range api.Errors {
				want := fmt.Errorf("not %s: %w", name, e)
				vm.fail(want)
				err := do()
				for _, other := range api.Errors {
					if errors.Is(err, other) != (other == e) {
						t.Errorf("%s: %v is a %s: %v", name, err, other.Code, other != e)
					}
				}
				if err == nil || err.Error() != want.Error() {
					t.Errorf("%s: %q, want %q", name, err, want)
				}
			}
			vm.fail(errors.New("something"))
			if err := do(); !errors.Is(err, api.ErrFailed) || err.Error() != "something" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestStatuses are those of HTTP, for those who look at nothing else.
func TestStatuses(t *testing.T) {
	for _, c := range []struct {
		method, path, body string
		err                error
		status             int
		code               string
	}{
		{"POST", api.PathPause, "", nil, 200, ""}, {"POST", api.PathPause, "", api.ErrPaused, 409, "paused"}, {"POST", api.PathPause, "", io.EOF, 500, "failed"},
		{"GET", "/vm", "", nil, 404, "notFound"}, {"GET", "/v1/vm/", "", nil, 404, "notFound"}, {"POST", api.PathVM, "", nil, 405, "method"}, {"BREW", api.PathPorts, "", nil, 405, "method"},
		{"POST", api.PathPorts, "{", nil, 400, "badRequest"}, {"POST", api.PathPorts, `{"host":"nowhere"}`, nil, 400, "badRequest"}, {"POST", api.PathPorts, `{"guest":65536}`, nil, 400, "badRequest"},
		{"POST", api.PathLink, `{"nic":"` + strings.Repeat("0", api.MaxBody) + `"}`, nil, 400, "badRequest"}, {"POST", api.PathLink, "", nil, 400, "badRequest"},
		{"POST", api.PathMigrate, "{}", api.ErrMigrationUnknown, 500, "migrationUnknown"}, {"POST", api.PathSnapshot, "{}", api.ErrAgentSilent, 504, "agentSilent"},
		{"POST", api.PathAgent, "", nil, 400, "badRequest"}, {"POST", api.PathGDB, "", nil, 400, "badRequest"}, // nothing to take over
	} {
		w := httptest.NewRecorder()
		New(&fakeVM{err: c.err}).ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.status || !strings.Contains(w.Body.String(), `{"error":{"code":"`+c.code+`","message":"`) && c.code != "" || c.code == "" && w.Body.Len() > 0 {
			t.Errorf("%s %s %.20s: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
	}
}

// TestProgress: who waits hears how far it is before it is done.
func TestProgress(t *testing.T) {
	heard := make(chan api.Progress)
	vm := &fakeVM{progress: []api.Progress{{Done: 1, Total: 9, Round: 2}}, hold: func(context.Context) error { <-heard; return nil }}
	_, c, _ := serve(t, vm)
	result, err := c.Migrate(context.Background(), api.MigrateRequest{}, func(p api.Progress) { heard <- p; vm.was("%+v", p) })
	if did := vm.did(); err != nil || *result != moved || !slices.Contains(did, "{Done:1 Total:9 Round:2}") {
		t.Errorf("%+v, %v, %v", result, err, did)
	}
}

// TestCancel: hanging up ends a migration, and the caller's cause is told.
func TestCancel(t *testing.T) {
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	_, c, _ := serve(t, &fakeVM{hold: func(ctx context.Context) error {
		cancel(why)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}})
	if _, err := c.Migrate(ctx, api.MigrateRequest{}, nil); !errors.Is(err, why) {
		t.Errorf("err = %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the VM was not told")
	}
}

// talk says something on a connection and returns all that is answered.
func talk(t *testing.T, conn net.Conn, what string) string {
	t.Helper()
	defer conn.Close()
	io.WriteString(conn, what)
	if err := conn.(Conn).CloseWrite(); err != nil {
		t.Error(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// TestJoin uses the connections that were upgraded, in both directions.
func TestJoin(t *testing.T) {
	ctx := context.Background()
	vm := &fakeVM{}
	vm.guest = func() (Conn, error) { return dialEcho(t, vm) }
	_, c, _ := serve(t, vm)
	for name, dial := range map[string]func(context.Context) (net.Conn, error){"agent": c.DialAgent, "console": c.DialConsole, "gdb": c.DialGDB} {
		conn, err := dial(ctx)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := talk(t, conn, "hello"); got != "hellobye" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// dialEcho connects to what echoes, as a guest's agent.
func dialEcho(t *testing.T, vm *fakeVM) (Conn, error) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "guest"))
	if err != nil {
		return nil, err
	}
	go func() {
		defer l.Close()
		if conn, err := l.Accept(); err == nil {
			vm.echo(conn.(Conn))
			conn.Close()
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return nil, err
	}
	return conn.(Conn), nil
}

// TestReadAhead: what a client has sent with its request is not lost.
func TestReadAhead(t *testing.T) {
	_, _, socket := serve(t, &fakeVM{})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	got := talk(t, conn, "POST "+api.PathConsole+" HTTP/1.1\r\nHost: vmm\r\nConnection: Upgrade\r\nUpgrade: vmm-console\r\n\r\nearly")
	if head, body, _ := strings.Cut(got, "\r\n\r\n"); !strings.HasPrefix(head, "HTTP/1.1 101 ") || body != "earlybye" {
		t.Errorf("%q", got)
	}
}

// TestClose: requests that are being served are told and answered, connections that
// were upgraded end with their last words, and nobody is served any more.
func TestClose(t *testing.T) {
	ctx := context.Background()
	begun := make(chan bool)
	vm := &fakeVM{hold: func(ctx context.Context) error {
		begun <- true
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	vm.guest = func() (Conn, error) { return dialEcho(t, vm) }
	s, c, socket := serve(t, vm)
	silent, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	console, err := c.DialConsole(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	agent, err := c.DialAgent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	failed := make(chan error)
	go func() {
		_, err := c.Snapshot(ctx, api.SnapshotRequest{}, nil)
		failed <- err
	}()
	<-begun
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if err := <-failed; !errors.Is(err, api.ErrNotRunning) || err.Error() != "the VM has ended" {
		t.Errorf("the snapshot: %v", err)
	}
	if b, err := io.ReadAll(console); err != nil || string(b) != "bye" {
		t.Errorf("the console ends with %q, %v", b, err)
	}
	if b, err := io.ReadAll(agent); err != nil || len(b) > len("bye") { // which the guest can say or not
		t.Errorf("the agent ends with %q, %v", b, err)
	}
	if err := errors.Join(<-closed, s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(silent); err != nil {
		t.Errorf("who has asked nothing: %v", err)
	}
	if err := c.Pause(ctx); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("after that: %v", err)
	}
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, httptest.NewRequest("POST", api.PathPause, nil)); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), `"notRunning"`) {
		t.Errorf("by another way: %d %s", w.Code, w.Body)
	}
}

func TestLongPath(t *testing.T) {
	err := New(&fakeVM{}).Listen("/" + strings.Repeat("x", maxSocketPath))
	if err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("err = %v", err)
	}
}

// TestMetrics holds the metrics to what Prometheus' own library writes of them.
func TestMetrics(t *testing.T) {
	const want = `# HELP vmm_disk_bytes_total What the guest read and wrote.
# TYPE vmm_disk_bytes_total counter
vmm_disk_bytes_total{device="disk0",direction="read",vm="dev"} 1.073741824e+09
vmm_disk_bytes_total{device="disk0",direction="written",vm="dev"} 3
# HELP vmm_exits_total How often virtual CPUs came back, by reason.
# TYPE vmm_exits_total counter
vmm_exits_total{reason="a \"b\"\\\n",vm="dev"} 1
vmm_exits_total{reason="io",vm="dev"} 1.2345678e+07
# HELP vmm_network_bytes_total What the guest received and sent.
# TYPE vmm_network_bytes_total counter
vmm_network_bytes_total{device="eth0",direction="received",vm="dev"} 7
vmm_network_bytes_total{device="eth0",direction="sent",vm="dev"} 1.152921504606847e+18
# HELP vmm_resident_bytes Memory of the VM's process.
# TYPE vmm_resident_bytes gauge
vmm_resident_bytes{vm="dev"} 1.23456789012e+11
# HELP vmm_vcpu_seconds_total Time that the thread of a virtual CPU has used.
# TYPE vmm_vcpu_seconds_total counter
vmm_vcpu_seconds_total{cpu="0",vm="dev"} 1.25
vmm_vcpu_seconds_total{cpu="1",vm="dev"} 0
`
	_, c, _ := serve(t, &fakeVM{})
	got, err := c.Metrics(context.Background())
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	w := httptest.NewRecorder()
	New(&fakeVM{}).ServeHTTP(w, httptest.NewRequest("GET", api.PathMetrics, nil))
	if kind := w.Header().Get("Content-Type"); kind != metricsType {
		t.Errorf("type %q", kind)
	}
}

// FuzzControl sends any requests. None may be answered with anything but JSON or a
// known type, and those that cannot be understood do not reach the VM.
func FuzzControl(f *testing.F) {
	for path, methods := range routes {
		for method := range methods {
			f.Add(method, path, `{"path":"/x","size":1,"nic":0,"up":true,"host":"127.0.0.1:1","guest":2,"dir":"/d","address":"unix:/x","downtime":1}`)
		}
	}
	f.Add("GET", "/nowhere", "")
	f.Add("", api.PathPorts, "")
	vm := &fakeVM{}
	s := New(vm)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequest(method, "http://vmm", strings.NewReader(body))
		if err != nil {
			return
		}
		method, r.URL.Path = r.Method, path // "" is GET
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		route, known := routes[path][method]
		if known && w.Code == http.StatusNotFound || !known && w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %q: %d", method, path, w.Code)
		}
		if did := vm.did(); (!known || w.Code == http.StatusBadRequest) && len(did) > 0 {
			t.Errorf("%s %q was answered with %d, but the VM was asked %q", method, path, w.Code, did)
		}
		if known && route.protocol == "" && route.answer == nil && w.Code == http.StatusOK && path != api.PathMetrics && w.Body.Len() > 0 {
			t.Errorf("%s %q has the answer %q", method, path, w.Body)
		}
	})
}
