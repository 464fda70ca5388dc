package cli

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"vmm/vm/registry"
)

// FuzzControl sends the control socket requests with any bodies. Those that need a
// machine are left to the tests with a guest.
func FuzzControl(f *testing.F) {
	needMachine := []string{"/stats", "/metrics", "/stop", "/kill", "/gdb", "/pause", "/resume", "/snapshot", "/migrate"}
	for _, path := range []string{"/vm", "/disks/resize", "/ports", "/nics", "/nics/link", "/agent", "/console", "/nowhere"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			f.Add(method, path, `{"path":"/x","size":1,"nic":0,"up":true,"host":"127.0.0.1:1","guest":2}`)
		}
	}
	h := (&control{dir: &registry.Entry{}, nets: &networks{}, saver: &saver{flags: newRunFlags(), parts: &parts{disks: &diskSet{}}}}).handler()
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequest(method, "http://vmm", strings.NewReader(body))
		if err != nil {
			return
		}
		r.URL.Path = path
		if slices.Contains(needMachine, filepath.Clean("/"+path)) {
			return
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	})
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := newLog(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1<<20)
	for range 3 * logSize >> 20 {
		l.Write([]byte(line))
	}
	l.Write([]byte("last"))
	l.close()
	now, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(now), "last") || len(now) > logSize {
		t.Errorf("the log has %d bytes, %v", len(now), err)
	}
	if old, err := os.Stat(path + registry.OldLog); err != nil || old.Size() > logSize {
		t.Errorf("the log before: %v, %v", old, err)
	}
}

// configFlags are vmm run's.
func configFlags(f *runFlags) *pflag.FlagSet {
	fl := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.add(fl)
	return fl
}

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "vm.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("memory = \"1G\"\ncpus = 2\nshare = [\"a:/a\", \"b:/b:ro\"]\nverbose = true\ncommand = [\"make\", \"check\"]\n")
	f := newRunFlags()
	fl := configFlags(f)
	if err := fl.Parse([]string{"--config", file, "-c", "3"}); err != nil {
		t.Fatal(err)
	}
	if err := f.read(fl, fl.Args()); err != nil {
		t.Fatal(err)
	}
	if f.memory != 1<<30 || f.cpus != 3 || !slices.Equal(f.shares, []string{"a:/a", "b:/b:ro"}) || !f.verbose || !slices.Equal(f.command, []string{"make", "check"}) {
		t.Errorf("read %+v", f)
	}
	var out strings.Builder
	if err := writeConfig(&out, fl, f.command); err != nil {
		t.Fatal(err)
	}
	write(out.String())
	again := newRunFlags()
	fl = configFlags(again)
	fl.Parse([]string{"--config", file})
	if err := again.read(fl, nil); err != nil || again.memory != f.memory || again.cpus != 3 || !slices.Equal(again.command, f.command) {
		t.Errorf("what was written is read as %+v, %v", again, err)
	}
	for text, want := range map[string]string{
		"= 1": "vm.toml:1", "color = 1": "color", "memory = [[1]]": "", "cpus = \"many\"": "cpus", "config = \"x\"": "no such flag", "memory = 1979-05-27": "a text",
	} {
		write(text)
		f := newRunFlags()
		fl := configFlags(f)
		fl.Parse([]string{"--config", file})
		err := f.read(fl, nil)
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestClockJumps(t *testing.T) {
	a := moment{time.Hour, time.Minute}
	for _, c := range []struct {
		wall, monotonic time.Duration
		want            bool
	}{
		{time.Second, time.Second, false},
		{time.Second + maxDrift/2, time.Second, false},
		{time.Hour, time.Second, true},  // slept
		{-time.Hour, time.Second, true}, // set back
	} {
		if got := (moment{a.wall + c.wall, a.monotonic + c.monotonic}).jumped(a); got != c.want {
			t.Errorf("%v against %v: %v", c.wall, c.monotonic, got)
		}
	}
	if now := readClocks(); now.jumped(now) || now.wall == 0 || now.monotonic == 0 {
		t.Errorf("the clocks show %+v", now)
	}
}
