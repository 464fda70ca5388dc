package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/registry"
)

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

// runWith are the flags of vmm run with a command line.
func runWith(t *testing.T, args ...string) (*runFlags, []string) {
	t.Helper()
	f := &runFlags{}
	fl := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.add(fl)
	if err := fl.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f, fl.Args()
}

// TestConfigFile reads files of both forms, and what vmm config writes.
func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "vm.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := vm.Config{Memory: 1 << 30, CPUs: 3, Shares: []vm.Share{{Host: "a", Guest: "/a"}, {Host: "b", Guest: "/b", ReadOnly: true}},
		Nets:   vm.Nets{vm.User{NIC: vm.NIC{MTU: 9000}}, vm.Switch{Name: "lab", Gateway: &vm.Gateway{}}},
		Limits: vm.Limits{CPUs: 1.5, PIDs: 100, IO: []vm.IOLimit{{Path: "/a", WriteBPS: 1 << 20}}}}
	const nets = "net = [\"user,mtu=9000\", \"switch,name=lab,gateway\"]\n\"cpu-limit\" = 1.5\npids-limit = \"100\"\nio-limit = \"/a:wbps=1M\"\n"
	for _, text := range []string{
		"memory = \"1G\"\ncpus = 2\nshare = [\"a:/a\", \"b:/b:ro\"]\nverbose = true\ncommand = [\"make\", \"check\"]\n" + nets,
		"version = 1\nmemory = \"1G\"\ncpus = 2\ncommand = [\"make\", \"check\"]\nnets = [{mode = \"user\", mtu = 9000}, {mode = \"switch\", name = \"lab\", gateway = {}}]\n" +
			"[run]\nverbose = true\n[[shares]]\nhost = \"a\"\nguest = \"/a\"\n[[shares]]\nhost = \"b\"\nguest = \"/b\"\nreadOnly = true\n" +
			"[limits]\ncpus = 1.5\npids = 100\n[[limits.io]]\npath = \"/a\"\nwriteBytesPerSecond = 1048576\n",
	} {
		write(text)
		for range 2 { // the second time what was written of the first
			f, args := runWith(t, "--config", file, "-c", "3")
			s, err := f.read(args)
			if err != nil {
				t.Fatal(err)
			}
			got := *s.Config
			if got.Version = 0; !reflect.DeepEqual(got, want) || !s.Verbose || !slices.Equal(s.Command, []string{"make", "check"}) {
				t.Errorf("%s\nread as %+v, %+v", text, got, s)
			}
			var out strings.Builder
			if err := writeConfig(&out, *s.Config, s.Command, f.fl); err != nil {
				t.Fatal(err)
			}
			write(out.String())
		}
	}
	for text, want := range map[string]string{
		"= 1": "vm.toml:1", "color = 1": "color", "memory = [[1]]": "", "cpus = \"many\"": "cpus", "config = \"x\"": "no such flag", "memory = 1979-05-27": "a text",
		"version = 1\ncolor = 1": "color", "version = 1\ncpus = \"many\"": "cpus", "version = 1\n[run]\nmemory = 1": "no such flag", "version = 1\nrun = 1": "table",
		"version = 1\nnets = [{mode = \"air\"}]": "air",
	} {
		write(text)
		f, args := runWith(t, "--config", file)
		_, err := f.read(args)
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestConfigKeeps: whatever vmm run is told, a file of vmm config says too.
func TestConfigKeeps(t *testing.T) {
	dir := t.TempDir()
	written := func(args ...string) string {
		f, command := runWith(t, args...)
		s, err := f.read(command)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		var b strings.Builder
		if err := writeConfig(&b, *s.Config, command, f.fl); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	values := map[string]string{"boot-protocol": "elf", "disk": "x.img", "net": "none", "port": "a=none", "publish": "80", "share": ".:/x", "rw": dir, "label": "a=b", "restart": "always",
		"console-device": "virtio", "virtio": "mmio", "on-enospc": "pause", "jail": "off", "stop-signal": "INT", "root": dir, "vsock": "x", "io-limit": dir + ":rbps=1M", "console": "none", "env-file": os.DevNull}
	all, _ := runWith(t, "--", "true")
	all.fl.VisitAll(func(f *pflag.Flag) {
		if slices.Contains(notInFile, f.Name) || f.Name == "jail-user" { // which only root has
			return
		}
		value, ok := values[f.Name]
		switch f.Value.Type() {
		case "bool":
			value = "true"
		case "duration":
			value = "7s"
		case "string", "stringArray":
			if !ok {
				value = "x"
			}
		default:
			value = "64"
		}
		with := []string{"--", "true"}
		if f.Name == "restart" { // which goes with it
			with = append([]string{"-d"}, with...)
		}
		if written(append([]string{"--" + f.Name + "=" + value}, with...)...) == written(with...) {
			t.Errorf("--%s=%s is lost", f.Name, value)
		}
	})
}
