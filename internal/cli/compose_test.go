package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/pflag"

	"vmm/internal/compose"
	"vmm/network/gateway"
	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/registry"
)

// TestNotItsOwn: a VM that only has the name of a service stays as it is.
func TestNotItsOwn(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte("name: shop\nservices: {db: {image: db, container_name: dev}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := compose.Load(t.Context(), compose.Options{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	for what, labels := range map[string]map[string]string{"without labels": nil, "another project's": {projectLabel: "other", serviceLabel: "db"},
		"another service's": {projectLabel: "shop", serviceLabel: "web"}} {
		e, err := registry.User().Claim(api.VM{Name: "dev", Detached: true, Labels: labels})
		if err != nil {
			t.Fatal(err)
		}
		for _, ends := range []bool{false, true} {
			if ends {
				if err := e.End(0, ""); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := newUp(t.Context(), p, nil); err == nil || !strings.Contains(err.Error(), `"dev"`) {
				t.Errorf("%s, ended %v: up: %v", what, ends, err)
			}
			if err := down(t.Context(), io.Discard, p, 0, false); err != nil {
				t.Errorf("%s, ended %v: down: %v", what, ends, err)
			}
			if _, err := registry.User().Look("dev"); err != nil {
				t.Errorf("%s, ended %v: %v", what, ends, err)
			}
		}
		registry.User().Remove("dev")
	}
}

// TestInService: what is wrong with a service is said with its name.
func TestInService(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte("name: shop\nservices: {db: {build: .}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	p, err := compose.Load(t.Context(), compose.Options{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = newUp(t.Context(), p, nil)
	var exit *exitError
	if !errors.As(err, &exit) || exit.status != statusUsage || !strings.Contains(exit.err.Error(), "services.db: no image") {
		t.Errorf("%v", err)
	}
}

// TestServiceVolumes: a directory of the host's is shown without the credentials in it.
func TestServiceVolumes(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	c := &vm.Config{}
	s := &types.ServiceConfig{ContainerSpec: types.ContainerSpec{Volumes: []types.ServiceVolumeConfig{{Type: types.VolumeTypeBind, Source: home, Target: "/srv"}}}}
	if err := addServiceVolumes(&compose.Project{}, s, c); err != nil {
		t.Fatal(err)
	}
	if len(c.Shares) != 1 || !slices.Contains(c.Hide, filepath.Join(home, ".ssh")) {
		t.Errorf("shared are %v, without %q", c.Shares, c.Hide)
	}
}

// TestPublished writes ports as --publish reads them.
func TestPublished(t *testing.T) {
	for want, p := range map[string]types.ServicePortConfig{
		"80": {Target: 80}, "8080:80/tcp": {Target: 80, Published: "8080", Protocol: "tcp"}, "127.0.0.1:53:53/udp": {Target: 53, Published: "53", HostIP: "127.0.0.1", Protocol: "udp"},
		"[::1]:8080:80": {Target: 80, Published: "8080", HostIP: "::1"}, "127.0.0.1::80": {Target: 80, HostIP: "127.0.0.1"}, "8000-8010:80": {Target: 80, Published: "8000-8010"},
	} {
		got := published(p)
		if _, err := gateway.ParsePublications(got); got != want || err != nil {
			t.Errorf("%+v: %s, %v; want %s", p, got, err, want)
		}
	}
}

// TestServiceCommand has the entry point and the command of a service, as docker has them.
func TestServiceCommand(t *testing.T) {
	image := []string{"/entry"}
	for want, s := range map[string]types.ContainerSpec{
		"/entry image": {}, "/entry a b": {Command: []string{"a", "b"}}, "/e": {Entrypoint: []string{"/e"}}, "/e x a": {Entrypoint: []string{"/e", "x"}, Command: []string{"a"}},
		"a": {Entrypoint: []string{}, Command: []string{"a"}},
	} {
		f := &runFlags{}
		fl := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.add(fl)
		command := serviceCommand(&types.ServiceConfig{ContainerSpec: s}, fl)
		if got := strings.Join(imageCommandLine(image, []string{"image"}, command, f.runImage.entrypoint, fl.Changed("entrypoint")), " "); got != want {
			t.Errorf("%+v: %s, want %s", s, got, want)
		}
	}
}
