package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"vmm/internal/compose"
	"vmm/internal/visible"
	"vmm/network/gateway"
	"vmm/storage/volume"
	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/spec"
)

// Labels of a service's VM, as docker compose has them.
const (
	projectLabel = "com.docker.compose.project"
	serviceLabel = "com.docker.compose.service"
)

// newServiceSession makes the session of a service, as vmm run -d would of the flags that say
// the same.
func newServiceSession(ctx context.Context, p *compose.Project, s *types.ServiceConfig) (*session, error) {
	if s.Image == "" {
		return nil, usage("no image: build one, and vmm load it")
	}
	f := &runFlags{}
	fl := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.add(fl)
	var errs []error
	set := func(name, value string) {
		if err := fl.Set(name, value); err != nil {
			errs = append(errs, usage("%s: %w", value, err))
		}
	}
	given := func(name, value string) {
		if value != "" {
			set(name, value)
		}
	}
	set("detach", "true")
	set("name", p.VM(s))
	set("image", s.Image)
	given("hostname", s.Hostname)
	given("stop-signal", s.StopSignal)
	given("restart", s.Restart)
	if s.StopGracePeriod != nil {
		set("stop-timeout", fmt.Sprint(math.Ceil(time.Duration(*s.StopGracePeriod).Seconds())))
	}
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		set("label", key+"="+s.Labels[key])
	}
	set("label", projectLabel+"="+p.Name)
	set("label", serviceLabel+"="+s.Name)
	given("user", s.User)
	given("cwd", s.WorkingDir)
	if s.ReadOnly {
		set("read-only", "true")
	}
	for _, t := range s.Tmpfs {
		set("tmpfs", t)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		if v := s.Environment[name]; v != nil {
			set("env", name+"="+*v)
		}
	}
	if s.MemLimit > 0 {
		set("memory", fmt.Sprintf("%dK", (s.MemLimit+1023)>>10))
	}
	if s.CPUS > 0 {
		set("cpus", fmt.Sprint(math.Ceil(float64(s.CPUS))))
	}
	switch s.PullPolicy {
	case types.PullPolicyAlways, types.PullPolicyNever:
		set("pull", s.PullPolicy)
	}
	for _, port := range s.Ports {
		set("publish", published(port))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	session, err := f.session(ctx, serviceCommand(s, fl))
	if err != nil {
		return nil, err
	}
	c := session.Config
	if err := addServiceVolumes(p, s, c); err != nil {
		return nil, err
	}
	if err := errors.Join(addServiceNetworks(p, s, c), setHealth(s.HealthCheck, c)); err != nil {
		return nil, &exitError{statusUsage, err}
	}
	if err := c.Check(); err != nil {
		return nil, &exitError{statusUsage, err}
	}
	return session, nil
}

// serviceCommand is the command that a service gives its image; it sets the entry point.
func serviceCommand(s *types.ServiceConfig, fl *pflag.FlagSet) []string {
	switch {
	case s.Entrypoint == nil:
		return s.Command
	case len(s.Entrypoint) == 0:
		fl.Set("entrypoint", "")
		return s.Command
	}
	fl.Set("entrypoint", s.Entrypoint[0])
	return append(slices.Clone(s.Entrypoint[1:]), s.Command...)
}

// published is a port as --publish has it.
func published(p types.ServicePortConfig) string {
	host := p.HostIP
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	text := fmt.Sprint(p.Target)
	if p.Published != "" || host != "" {
		text = p.Published + ":" + text
	}
	if host != "" {
		text = host + ":" + text
	}
	if p.Protocol != "" {
		text += "/" + p.Protocol
	}
	return text
}

// addServiceVolumes gives a VM a service's volumes, but not the credentials that are in their directories.
func addServiceVolumes(p *compose.Project, s *types.ServiceConfig, c *vm.Config) error {
	var list []spec.Volume
	for _, v := range s.Volumes {
		at := spec.Volume{Kind: spec.VolumeKind(v.Type), Source: v.Source, Guest: v.Target, ReadOnly: v.ReadOnly}
		switch v.Type {
		case types.VolumeTypeBind:
			at.Source = p.Path(v.Source)
			at.Make = v.Bind == nil || bool(v.Bind.CreateHostPath)
		case types.VolumeTypeTmpfs:
			if v.Tmpfs != nil && v.Tmpfs.Size > 0 {
				at.Options = fmt.Sprintf("size=%d", v.Tmpfs.Size)
			}
		case types.VolumeTypeVolume:
			if v.Source == "" {
				return usage("volumes: %s: a volume without a name would go with the VM, as all goes that is written beside volumes", v.Target)
			}
			at.Source = volumeName(p, v.Source)
			at.NoCopy = v.Volume != nil && v.Volume.NoCopy
			if p.Volumes[v.Source].External {
				store, err := volume.Open()
				if err == nil {
					_, err = store.Get(at.Source)
				}
				if err != nil {
					return failed(fmt.Errorf("volumes: %w: it is external, and so to be made before (vmm volume create)", err))
				}
			}
		default:
			return usage("volumes: %s: type %s: bind, volume or tmpfs", v.Target, v.Type)
		}
		list = append(list, at)
	}
	if err := addVolumes(c, list); err != nil || len(c.Shares) == 0 {
		return err
	}
	return hideCredentials(c, nil, nil)
}

// addServiceNetworks gives a VM a gateway of its own, by which it reaches the world and its ports are
// published, and a device for each of the project's networks that the service is in.
func addServiceNetworks(p *compose.Project, s *types.ServiceConfig, c *vm.Config) error {
	switch s.NetworkMode {
	case "":
	case "none":
		c.Nets = vm.Nets{vm.None{}}
		return nil
	default:
		return fmt.Errorf("network_mode: %s: none, or networks", s.NetworkMode)
	}
	known, err := p.Hosts(s)
	if err != nil {
		return err
	}
	var hosts []vm.HostName
	for _, h := range known {
		hosts = append(hosts, vm.HostName{Name: h.Name, Address: h.Address})
	}
	for _, name := range slices.Sorted(maps.Keys(s.ExtraHosts)) {
		for _, text := range s.ExtraHosts[name] {
			addr, err := netip.ParseAddr(text)
			if text == "host-gateway" {
				addr, err = gateway.DefaultSubnet.Addr().Next().Next(), nil
			}
			if err != nil {
				return fmt.Errorf("extra_hosts: %s: %w", name, err)
			}
			hosts = append(hosts, vm.HostName{Name: name, Address: addr})
		}
	}
	c.Root.Image.Hosts = hosts
	c.Nets = nil
	if p.Outside(s) {
		c.Nets = append(c.Nets, vm.User{Gateway: vm.Gateway{Hosts: hosts}})
	}
	interfaces, err := p.Interfaces(s)
	for _, i := range interfaces {
		c.Nets = append(c.Nets, vm.Switch{NIC: vm.NIC{Address: i.Address}, Name: i.Switch})
	}
	return err
}

// await returns when a service is as another wants it that depends on it.
func (s *service) await(ctx context.Context, condition string) error {
	switch condition {
	case types.ServiceConditionHealthy:
		return s.healthy(ctx)
	case types.ServiceConditionCompletedSuccessfully:
		now, err := registry.User().Look(s.vm)
		if err != nil {
			return err
		}
		if err := registry.User().WaitGone(ctx, now); err != nil {
			return err
		}
		now, err = registry.User().Look(s.vm)
		if err == nil && (now.Status == nil || *now.Status != 0) {
			err = fmt.Errorf("it %s", statusText(&now))
		}
		return err
	}
	return nil
}

// setHealth gives a VM, which has the health check of its image, that of its service.
func setHealth(of *types.HealthCheckConfig, c *vm.Config) error {
	if of == nil {
		return nil
	}
	if of.Disable || len(of.Test) > 0 && of.Test[0] == "NONE" {
		c.Health = nil
		return nil
	}
	check := c.Health
	if len(of.Test) > 0 {
		own, err := imageHealth(&v1.HealthConfig{Test: of.Test})
		if err != nil {
			return fmt.Errorf("healthcheck: %w", err)
		}
		if check != nil {
			own.Interval, own.Timeout, own.StartPeriod, own.Retries = check.Interval, check.Timeout, check.StartPeriod, check.Retries
		}
		check = own
	}
	if check == nil {
		return errors.New("healthcheck: no test, and the image has none")
	}
	check.Interval, check.Timeout = cmp.Or(duration(of.Interval), check.Interval), cmp.Or(duration(of.Timeout), check.Timeout)
	check.StartPeriod = cmp.Or(duration(of.StartPeriod), check.StartPeriod)
	if of.Retries != nil {
		check.Retries = cmp.Or(int(min(*of.Retries, math.MaxInt32)), check.Retries)
	}
	c.Health = check
	return nil
}

func duration(d *types.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return time.Duration(*d)
}

// healthPoll is how often a service is asked whether it is well.
const healthPoll = 200 * time.Millisecond

// healthy returns when the service is well.
func (s *service) healthy(ctx context.Context) error {
	for {
		now, err := registry.User().Look(s.vm)
		if err == nil && now.State == api.Exited {
			err = fmt.Errorf("it %s", statusText(&now))
		}
		if err != nil {
			return err
		}
		vms := []api.VM{now}
		askState(ctx, vms)
		switch h := vms[0].Health; {
		case h == nil && vms[0].Agent:
			return errors.New("it has no health check")
		case h != nil && h.Status == string(vm.Healthy):
			return nil
		case h != nil && h.Status == string(vm.Unhealthy):
			return fmt.Errorf("it is unhealthy: %s", visible.Line(h.Output))
		}
		select {
		case <-time.After(healthPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
