package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/pflag"

	"vmm/guest-images/agent"
	"vmm/internal/compose"
	"vmm/network/gateway"
	"vmm/storage/oci"
	"vmm/storage/volume"
	"vmm/vm"
	"vmm/vm/api"
	"vmm/vm/registry"
	"vmm/vm/spec"
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
	given("user", s.User)
	given("cwd", s.WorkingDir)
	if s.ReadOnly {
		set("read-only", "true")
	}
	for _, t := range s.Tmpfs {
		set("tmpfs", t)
	}
	for _, name := range sortedKeys(s.Environment) {
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
	if err := addServiceNetworks(p, s, c); err != nil {
		return nil, &exitError{statusUsage, err}
	}
	if err := c.Check(); err != nil {
		return nil, &exitError{statusUsage, err}
	}
	return session, nil
}

// sortedKeys are the keys of a map.
func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
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

// addServiceVolumes gives a VM a service's volumes.
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
	return addVolumes(c, list)
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
	for _, name := range sortedKeys(s.ExtraHosts) {
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
		if err := registry.User().WaitEnded(ctx, now); err != nil {
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

// What docker has for a health check that says no more.
const (
	healthInterval = 30 * time.Second
	healthTimeout  = 30 * time.Second
	healthRetries  = 3
	// healthStart is how often a service is looked at that has not been well yet.
	healthStart = time.Second
)

// healthCheck is how it is found out whether a service is well.
type healthCheck struct {
	command                        []string
	interval, timeout, startPeriod time.Duration
	retries                        int
}

// health is the check that the file has, or the image.
func (s *service) health() (*healthCheck, error) {
	h := &healthCheck{interval: healthInterval, timeout: healthTimeout, retries: healthRetries}
	var test []string
	if store, err := openStore(); err == nil {
		if i, err := store.Get(s.Image); err == nil && i.Config.Config.Healthcheck != nil {
			of := i.Config.Config.Healthcheck
			test = of.Test
			h.set(of.Interval, of.Timeout, of.StartPeriod, of.Retries)
		} else if err != nil && !errors.Is(err, oci.ErrNotFound) {
			return nil, err
		}
	}
	if of := s.HealthCheck; of != nil {
		if len(of.Test) > 0 {
			test = of.Test
		}
		if of.Disable {
			test = nil
		}
		var retries uint64
		if of.Retries != nil {
			retries = *of.Retries
		}
		h.set(duration(of.Interval), duration(of.Timeout), duration(of.StartPeriod), int(min(retries, math.MaxInt32)))
	}
	switch {
	case len(test) > 1 && test[0] == "CMD":
		h.command = test[1:]
	case len(test) == 2 && test[0] == "CMD-SHELL":
		h.command = []string{"/bin/sh", "-c", test[1]}
	default:
		return nil, errors.New("it has no health check")
	}
	return h, nil
}

// set takes over what is given.
func (h *healthCheck) set(interval, timeout, startPeriod time.Duration, retries int) {
	for _, v := range []struct {
		to    *time.Duration
		value time.Duration
	}{{&h.interval, interval}, {&h.timeout, timeout}, {&h.startPeriod, startPeriod}} {
		if v.value > 0 {
			*v.to = v.value
		}
	}
	if retries > 0 {
		h.retries = retries
	}
}

func duration(d *types.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return time.Duration(*d)
}

// healthy returns when the service is well. Until its start period and the first interval are over
// it is looked at more often than the check says, and no failure counts.
func (s *service) healthy(ctx context.Context) error {
	h, err := s.health()
	if err != nil {
		return err
	}
	var began time.Time // of the service: its guest has booted
	failures := 0
	for {
		now, err := registry.User().Look(s.vm)
		if err == nil && now.State != api.Running {
			err = fmt.Errorf("it %s", statusText(&now))
		}
		if err != nil {
			return err
		}
		if began.IsZero() {
			vms := []api.VM{now}
			if askState(ctx, vms); vms[0].Agent {
				began = time.Now()
			}
		}
		pause := healthStart
		if !began.IsZero() {
			err := h.check(ctx, now)
			if err == nil {
				return nil
			}
			if time.Since(began) > h.startPeriod+h.interval {
				failures++
				pause = h.interval
			}
			if failures >= h.retries {
				return fmt.Errorf("it is not healthy: %w", err)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// check runs the check once.
func (h *healthCheck) check(ctx context.Context, vm api.VM) error {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	exit, err := agentOf(vm).Exec(ctx, agent.Exec{Argv: h.command}, agent.Streams{Out: io.Discard, Err: io.Discard})
	switch {
	case err != nil:
		return err
	case exit.Error != "":
		return errors.New(exit.Error)
	case exit.Status != 0:
		return fmt.Errorf("%s: status %d", strings.Join(h.command, " "), exit.Status)
	}
	return nil
}
