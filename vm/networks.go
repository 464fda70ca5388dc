package vm

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"

	"vmm/internal/hostpid"
	"vmm/internal/output"
	"vmm/internal/version"
	"vmm/network/ether"
	"vmm/network/gateway"
	"vmm/network/lan"
	"vmm/network/pcapng"
	"vmm/network/tap"
	"vmm/virtio"
	vnet "vmm/virtio/net"
)

// vmNIC is a network device with what is at the other end of its cable.
type vmNIC struct {
	cfg    Net
	opts   vnet.Options
	link   ether.Link // until a device has it
	device *vnet.Device
	// gateway is nil where there is none; a switch's may come to this VM later.
	gateway atomic.Pointer[gateway.Gateway]
}

// networks are the VM's network devices.
type networks struct {
	nics    []*vmNIC
	capture *pcapng.Writer
}

// gateway is the one of published ports, nil if there is none.
func (n *networks) gateway() *gateway.Gateway {
	for _, c := range n.nics {
		if g := c.gateway.Load(); g != nil {
			return g
		}
	}
	return nil
}

// openNetworks makes what is behind the network devices, and publishes ports. saved
// are addresses that devices had before, as far as there are any.
// A capture is not in a directory of guest's.
func openNetworks(c *Config, saved []ether.MAC, o *options, guest []string) (_ *networks, err error) {
	n := &networks{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if o.capture != "" {
		f, err := output.Create(o.capture, output.Private, guest)
		if err == nil {
			n.capture, err = pcapng.New(f, "vmm "+version.String())
		}
		if err != nil {
			return nil, fmt.Errorf("the capture: %w", err)
		}
	}
	for i, cfg := range c.Nets {
		if _, none := cfg.(None); none {
			continue
		}
		mac := cfg.card().MAC
		if mac == (ether.MAC{}) && i < len(saved) {
			mac = saved[i]
		}
		if mac == (ether.MAC{}) {
			mac = ether.DeriveMAC(c.Name, i)
		}
		if err := n.open(i, cfg, mac, c, o); err != nil {
			return nil, of("Nets", fmt.Errorf("%s: %w", cfg.Mode(), err))
		}
	}
	for _, p := range c.Publish {
		g := n.gateway()
		if g == nil {
			return nil, of("Publish", fmt.Errorf("%w: the switch's is another VM's", ErrNoGateway))
		}
		if _, err := g.Publish(p); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// open makes the link of network i.
func (n *networks) open(i int, cfg Net, mac ether.MAC, c *Config, o *options) error {
	card := cfg.card()
	v := &vmNIC{cfg: cfg, opts: vnet.Options{MAC: mac, MTU: card.MTU, Pairs: card.Queues,
		Limit: vnet.Limit{BytesPerSecond: card.BytesPerSecond, PacketsPerSecond: card.PacketsPerSecond}}}
	if v.opts.Pairs == 0 {
		v.opts.Pairs = 1
		if _, isTap := cfg.(Tap); isTap {
			v.opts.Pairs = min(c.CPUs, maxQueues)
		}
	}
	link, err := v.connect(c, o)
	if err != nil {
		return err
	}
	if n.capture != nil {
		link = n.capture.Tap(link, fmt.Sprintf("eth%d (%s)", i, cfg.Mode()))
	}
	v.link = link
	n.nics = append(n.nics, v)
	return nil
}

// connect makes what is at the other end of the cable.
func (v *vmNIC) connect(c *Config, o *options) (ether.Link, error) {
	switch cfg := v.cfg.(type) {
	case User:
		return v.openGateway(v.gatewayConfig(&cfg.Gateway, c, o))
	case Tap:
		l, err := tap.Open(cfg.Interface, v.opts.Pairs)
		if err != nil {
			return nil, err
		}
		v.opts.Pairs = l.Queues()
		return l, nil
	}
	s := lan.New()
	if err := v.plug(s, c, o); err != nil {
		s.Close()
		return nil, err
	}
	return s.Link(), nil
}

func (v *vmNIC) gatewayConfig(g *Gateway, c *Config, o *options) gateway.Config {
	hosts := map[string]netip.Addr{}
	for _, h := range g.Hosts {
		hosts[strings.ToLower(h.Name)] = h.Address
	}
	return gateway.Config{Subnet: g.Subnet, MTU: v.opts.MTU, Guest: v.opts.MAC, Hostname: c.GuestName(),
		Resolvers: g.DNS, Hosts: hosts, Policy: g.Policy, Log: o.log}
}

// openGateway makes the gateway.
func (v *vmNIC) openGateway(c gateway.Config) (ether.Link, error) {
	g, err := gateway.New(c)
	if err != nil {
		return nil, err
	}
	v.gateway.Store(g)
	return g, nil
}

// plug connects a switch with others, and with a gateway if that is wanted.
func (v *vmNIC) plug(s *lan.Switch, c *Config, o *options) error {
	switch cfg := v.cfg.(type) {
	case Datagram:
		return s.Datagram(cfg.Local, cfg.Remote)
	case Stream:
		if cfg.Server {
			return s.Listen(cfg.Path)
		}
		return s.Dial(cfg.Path)
	case Switch:
		return v.join(s, &cfg, c, o)
	}
	return fmt.Errorf("no network of kind %T", v.cfg)
}

// join makes the switch a part of the one that all VMs of a name have.
func (v *vmNIC) join(s *lan.Switch, cfg *Switch, c *Config, o *options) error {
	if o.runtime == "" {
		return errors.New("a switch needs a directory where its VMs meet (WithRuntimeDir)")
	}
	dir := filepath.Join(o.runtime, "switch", cfg.Name)
	if err := s.Join(dir, lan.Member{Name: c.Name, PID: hostpid.Self(), MAC: v.opts.MAC.String()}); err != nil {
		return err
	}
	if cfg.Listen != "" {
		if err := s.Listen(cfg.Listen); err != nil {
			return err
		}
	}
	if cfg.Gateway == nil {
		return nil
	}
	g := v.gatewayConfig(cfg.Gateway, c, o)
	g.Leases = filepath.Join(dir, "leases")
	return s.Share(dir, func() (ether.Link, error) { return v.openGateway(g) }, o.log)
}

// devices makes the guest's network devices, which own the links from then on. After an
// error it returns those that there are.
func (n *networks) devices() ([]virtio.Device, error) {
	var out []virtio.Device
	for _, v := range n.nics {
		dev, err := vnet.New(v.link, v.opts)
		if err != nil {
			return out, err
		}
		v.device, v.link = dev, nil
		out = append(out, dev)
	}
	return out, nil
}

// close ends what devices has not taken over.
func (n *networks) close() error {
	if n == nil {
		return nil
	}
	for _, v := range n.nics {
		if v.link != nil {
			v.link.Close()
			v.link = nil
		}
	}
	if n.capture == nil {
		return nil
	}
	err := n.capture.Close()
	n.capture = nil
	if err != nil {
		return fmt.Errorf("the capture: %w", err)
	}
	return nil
}
