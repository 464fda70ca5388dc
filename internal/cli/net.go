package cli

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"vmm/internal/bytesize"
	"vmm/internal/version"
	"vmm/network/ether"
	"vmm/network/gateway"
	"vmm/network/lan"
	"vmm/network/pcapng"
	"vmm/network/tap"
	"vmm/virtio"
	vnet "vmm/virtio/net"
	"vmm/vm/registry"
)

const netUsage = "network `MODE[,OPTION...]`: user (the default), none, tap,ifname=NAME, switch,name=NAME, stream,path=SOCKET or " +
	"dgram,local=SOCKET,remote=SOCKET; see docs/network.md; several are possible"

// netFlag is one --net.
type netFlag struct {
	mode    string
	options map[string][]string
	nic     vnet.Options
	config  gateway.Config
	// gateway is nil where there is none; a switch's may come to this VM later.
	gateway *atomic.Pointer[gateway.Gateway]
}

// netModes are the modes, each with the options that only it has.
var netModes = map[string][]string{
	"user":   gatewayOptions,
	"none":   {},
	"tap":    {"ifname"},
	"switch": append([]string{"name", "gateway", "listen"}, gatewayOptions...),
	"stream": {"path", "server"},
	"dgram":  {"local", "remote"},
}

var gatewayOptions = []string{"allow", "deny", "restrict", "dns", "subnet"}

// parseNet reads the value of --net.
func parseNet(s string) (n netFlag, err error) {
	parts := splitOptions(s)
	n.mode, n.options, n.gateway = parts[0], map[string][]string{}, new(atomic.Pointer[gateway.Gateway])
	own, ok := netModes[n.mode]
	if !ok {
		return n, fmt.Errorf("--net %s: no such mode; %s", s, strings.ReplaceAll(netUsage, "`", ""))
	}
	for _, part := range parts[1:] {
		key, v, given := strings.Cut(part, "=")
		n.options[key] = append(n.options[key], v)
		var err error
		switch {
		case key == "mac":
			n.nic.MAC, err = ether.ParseMAC(v)
		case key == "mtu":
			n.nic.MTU, err = strconv.Atoi(v)
			if err != nil || n.nic.MTU < ether.MinMTU || n.nic.MTU > ether.MaxMTU {
				err = fmt.Errorf("between %d and %d bytes", ether.MinMTU, ether.MaxMTU)
			}
		case key == "queues":
			var q int64
			if q, err = positive(v); q > vnet.MaxPairs {
				err = fmt.Errorf("at most %d pairs", vnet.MaxPairs)
			}
			n.nic.Pairs = int(q)
		case key == "bps":
			var b byteSize
			b, err = bytesize.Parse(v, 1)
			n.nic.Limit.BytesPerSecond = int64(b)
		case key == "pps":
			n.nic.Limit.PacketsPerSecond, err = positive(v)
		case !slices.Contains(own, key):
			err = fmt.Errorf("no such option of %s; mac, mtu, queues, bps, pps, %s", n.mode, strings.Join(own, ", "))
		default:
			err = n.gatewayOption(key, v, given)
		}
		if err != nil {
			return n, fmt.Errorf("--net %s: %s: %w", s, part, err)
		}
	}
	return n, n.needs(s)
}

// gatewayOption reads what concerns the gateway.
func (n *netFlag) gatewayOption(key, v string, given bool) (err error) {
	c := &n.config
	switch key {
	case "allow", "deny":
		err = c.Policy.ParseRule(key == "allow", v)
	case "restrict":
		c.Policy.Restrict, err = onOff(v, given)
		if c.Policy.Restrict && !slices.Contains(n.options["allow"], "dns") {
			c.Policy.NoNames = true
		}
	case "dns":
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(v); err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(v); err == nil {
				a = netip.AddrPortFrom(addr, 53)
			}
		}
		c.Resolvers = append(c.Resolvers, a)
	case "subnet":
		if c.Subnet, err = netip.ParsePrefix(v); err == nil && !c.Subnet.Addr().Is4() {
			err = errors.New("an IPv4 network such as 10.0.2.0/24")
		}
	case "gateway", "server":
		_, err = onOff(v, given)
	}
	return err
}

// needs finds options that a mode cannot do without.
func (n *netFlag) needs(s string) error {
	for mode, keys := range map[string][]string{"switch": {"name"}, "stream": {"path"}, "dgram": {"local", "remote"}} {
		for _, k := range keys {
			if n.mode == mode && n.option(k) == "" {
				return fmt.Errorf("--net %s: %s=... is missing", s, k)
			}
		}
	}
	if n.mode == "switch" && !registry.ValidName(n.option("name")) {
		return fmt.Errorf("--net %s: a switch's name has only letters, digits and dashes, at most 63", s)
	}
	return nil
}

// option is an option's last value.
func (n *netFlag) option(key string) string {
	if v := n.options[key]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

// on tells whether a switch was given and is on.
func (n *netFlag) on(key string) bool {
	v, given := n.options[key]
	on, _ := onOff(n.option(key), given && v[len(v)-1] != "")
	return given && on
}

// controlledNIC is a network device that other commands can look at and
// change.
type controlledNIC struct {
	*netFlag
	device *vnet.Device
}

// networks are the VM's network devices.
type networks struct {
	links   []ether.Link // until devices takes them over
	flags   []netFlag
	nics    []controlledNIC
	capture *pcapng.Writer
}

// gateway is the one of published ports, nil if there is none.
func (n *networks) gateway() *gateway.Gateway {
	for i := range n.flags {
		if g := n.flags[i].gateway.Load(); g != nil {
			return g
		}
	}
	return nil
}

// openNetworks makes what is behind the network devices, and publishes ports.
func (f *runFlags) openNetworks(log func(error)) (_ *networks, err error) {
	n := &networks{}
	usage := func(err error) error { return &exitError{statusUsage, err} }
	specs := f.nets
	if len(specs) == 0 {
		specs = []string{"user"}
	}
	for _, s := range specs {
		flag, err := parseNet(s)
		if err != nil {
			return nil, usage(err)
		}
		if flag.mode == "none" {
			if len(specs) > 1 {
				return nil, usage(errors.New("--net none goes with no other --net"))
			}
			continue
		}
		n.flags = append(n.flags, flag)
	}
	var published []gateway.Publication
	for _, s := range f.publish {
		p, err := gateway.ParsePublication(s)
		if err != nil {
			return nil, usage(fmt.Errorf("--publish %w", err))
		}
		published = append(published, p)
	}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if f.pcap != "" {
		if n.capture, err = pcapng.Create(f.pcap, "vmm "+version.String()); err != nil {
			return nil, fmt.Errorf("--pcap: %w", err)
		}
	}
	for i := range n.flags {
		// What starts warm has the addresses of the one that booted, on a network that
		// is its own.
		if r := f.restored; r != nil && (r.warm || !r.copies) && i < len(r.vm.NICs) && n.flags[i].nic.MAC == (ether.MAC{}) {
			n.flags[i].nic.MAC = r.vm.NICs[i].MAC
		}
		if err := n.open(i, f.name, f.cpus, log); err != nil {
			return nil, fmt.Errorf("--net %s: %w", n.flags[i].mode, err)
		}
	}
	for _, p := range published {
		g := n.gateway()
		if g == nil {
			return nil, usage(errors.New("--publish needs a --net user, or to be the first with gateway=on on a switch"))
		}
		if _, err := g.Publish(p); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// open makes the link of network i.
func (n *networks) open(i int, name string, cpus int, log func(error)) error {
	f := &n.flags[i]
	if f.nic.MAC == (ether.MAC{}) {
		f.nic.MAC = ether.DeriveMAC(name, i)
	}
	if f.nic.Pairs == 0 {
		f.nic.Pairs = 1
		if f.mode == "tap" {
			f.nic.Pairs = min(cpus, 8)
		}
	}
	f.config.Guest, f.config.Hostname, f.config.MTU, f.config.Log = f.nic.MAC, name, f.nic.MTU, log
	link, err := f.link(name, log)
	if err != nil {
		return err
	}
	if n.capture != nil {
		link = n.capture.Tap(link, fmt.Sprintf("eth%d (%s)", i, f.mode))
	}
	n.links = append(n.links, link)
	n.nics = append(n.nics, controlledNIC{netFlag: f})
	return nil
}

// link makes what is at the other end of the cable.
func (f *netFlag) link(name string, log func(error)) (ether.Link, error) {
	switch f.mode {
	case "user":
		return f.openGateway()
	case "tap":
		l, err := tap.Open(f.option("ifname"), f.nic.Pairs)
		if err != nil {
			return nil, err
		}
		f.nic.Pairs = l.Queues()
		return l, nil
	}
	s := lan.New()
	if err := f.plug(s, name, log); err != nil {
		s.Close()
		return nil, err
	}
	return s.Link(), nil
}

// openGateway makes the gateway.
func (f *netFlag) openGateway() (ether.Link, error) {
	g, err := gateway.New(f.config)
	if err != nil {
		return nil, err
	}
	f.gateway.Store(g)
	return g, nil
}

// plug connects a switch with others, and with a gateway if that is wanted.
func (f *netFlag) plug(s *lan.Switch, name string, log func(error)) error {
	switch {
	case f.mode == "dgram":
		return s.Datagram(f.option("local"), f.option("remote"))
	case f.mode == "stream" && f.on("server"):
		return s.Listen(f.option("path"))
	case f.mode == "stream":
		return s.Dial(f.option("path"))
	}
	user := registry.User()
	if err := user.Make(); err != nil {
		return err
	}
	dir := filepath.Join(user.Dir(), registry.SwitchDir, f.option("name"))
	if err := s.Join(dir, lan.Member{Name: name, PID: os.Getpid(), MAC: f.nic.MAC.String()}); err != nil {
		return err
	}
	if path := f.option("listen"); path != "" {
		if err := s.Listen(path); err != nil {
			return err
		}
	}
	if !f.on("gateway") {
		return nil
	}
	f.config.Leases = filepath.Join(dir, "leases")
	return s.Share(dir, f.openGateway, log)
}

// devices makes the guest's network devices, which own the links from then on.
func (n *networks) devices() ([]virtio.Device, error) {
	var out []virtio.Device
	for i, l := range n.links {
		dev, err := vnet.New(l, n.flags[i].nic)
		if err != nil {
			return nil, err
		}
		n.nics[i].device = dev
		out = append(out, dev)
	}
	n.links = nil
	return out, nil
}

// close ends what devices has not taken over.
func (n *networks) close() {
	for _, l := range n.links {
		l.Close()
	}
	n.links = nil
	if n.capture != nil {
		if err := n.capture.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "vmm: --pcap:", err)
		}
		n.capture = nil
	}
}

// report prints what went over the devices.
func (n *networks) report(w io.Writer) {
	for i, c := range n.nics {
		in, out := c.device.Counts()
		fmt.Fprintf(w, "vmm: eth%d: received %d packets, %d bytes, dropped %d; sent %d packets, %d bytes, dropped %d\n",
			i, in.Packets, in.Bytes, in.Dropped, out.Packets, out.Bytes, out.Dropped)
	}
}
