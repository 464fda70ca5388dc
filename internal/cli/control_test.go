package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/server"
)

// TestControl asks a VM without a machine for what it has not.
func TestControl(t *testing.T) {
	var c server.VM = &control{dir: &registry.Entry{}, nets: &networks{}, saver: &saver{flags: newRunFlags(), parts: &parts{disks: &diskSet{}}}}
	_, publish := c.Publish(api.Port{Guest: 1})
	_, agent := c.Agent(context.Background())
	_, console := c.Console()
	for _, e := range []struct{ got, want error }{
		{c.Resize(api.ResizeRequest{Path: "/x", Size: 1}), api.ErrNotFound}, {c.SetLink(0, true), api.ErrNotFound}, {c.SetLink(-1, true), api.ErrNotFound},
		{publish, api.ErrNoGateway}, {c.Unpublish(api.Port{}), api.ErrNoGateway}, {agent, api.ErrNoAgent}, {console, api.ErrNoConsole}, {c.Resume(), api.ErrNotPaused},
	} {
		if !errors.Is(e.got, e.want) {
			t.Errorf("%v, want %v", e.got, e.want)
		}
	}
	if len(c.NICs()) != 0 || len(c.Ports()) != 0 || c.Info().Paused || c.Info().Agent {
		t.Errorf("%v, %v, %+v", c.NICs(), c.Ports(), c.Info())
	}
}

func TestNewSize(t *testing.T) {
	for _, c := range []struct {
		r    api.ResizeRequest
		want int64
		err  error
	}{
		{api.ResizeRequest{Size: 20}, 20, nil}, {api.ResizeRequest{Sign: "+", Size: 5}, 15, nil}, {api.ResizeRequest{Sign: "-", Size: 4, Shrink: true}, 6, nil},
		{api.ResizeRequest{Size: 9, Shrink: true}, 9, nil}, {api.ResizeRequest{Size: 9}, 0, api.ErrShrink}, {api.ResizeRequest{Sign: "-", Size: 1}, 0, api.ErrShrink},
		{api.ResizeRequest{Sign: "-", Size: 11, Shrink: true}, 0, api.ErrConflict}, {api.ResizeRequest{Sign: "+", Size: math.MaxInt64}, 0, api.ErrConflict},
		{api.ResizeRequest{Size: -1, Shrink: true}, 0, api.ErrConflict}, {api.ResizeRequest{Sign: "*", Size: 2}, 0, api.ErrBadRequest},
	} {
		if got, err := newSize(&c.r, 10); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%+v: %d, %v", c.r, got, err)
		}
	}
}

// TestAdvice: what to do is said in terms of the command line, once.
func TestAdvice(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	_, none := findVM("a")
	for want, err := range map[string]error{
		"vmm run -d --name a": none, "--diff": advise(api.ErrNotParent.With("why")), "--no-agent": advise(fmt.Errorf("no: %w", api.ErrNoAgent)), "--shrink": advise(api.ErrShrink),
		"another --name": advise(&registry.TakenError{Name: "a"}), "vmm rm a": advise(&registry.TakenError{Name: "a", Ended: true}),
	} {
		if strings.Count(err.Error(), want) != 1 {
			t.Errorf("%q says nothing of %s", err, want)
		}
	}
	if err := errors.New("x"); advise(err) != err || advise(api.ErrPaused) != api.ErrPaused || advise(nil) != nil {
		t.Error("there is nothing to be said of these")
	}
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
