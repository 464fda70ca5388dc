package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"vmm/internal/vmname"
	"vmm/network/ether"
	"vmm/network/gateway"
	"vmm/virtio/net"
)

// Net is a network device with what is at the other end of its cable: a User, None,
// Tap, Switch, Stream or Datagram.
type Net interface {
	// Mode is the kind's name in files: user, none, tap, switch, stream or dgram.
	Mode() string
	card() *NIC
	check() error
}

// NIC is what all kinds have: the device itself.
type NIC struct {
	MAC ether.MAC `json:"mac,omitzero"` // made of the VM's name if it is zero
	// Address is the guest's IPv4 address with its network, where it is not to ask for one. Only
	// vmm's own guests, and those for commands, take it.
	Address netip.Prefix `json:"address,omitzero"`
	// MTU is in bytes, from ether.MinMTU to ether.MaxMTU (68 to 65521); 1500 if 0.
	MTU int `json:"mtu,omitempty"`
	// Queues are pairs, at most 32; if 0, one, and for a Tap one for each CPU, at most 8.
	Queues int `json:"queues,omitempty"`
	// BytesPerSecond and PacketsPerSecond bound each direction for itself; 0 does not.
	BytesPerSecond   int64 `json:"bytesPerSecond,omitempty"`
	PacketsPerSecond int64 `json:"packetsPerSecond,omitempty"`
}

// Gateway is a router with NAT, DHCP and DNS, in this process.
type Gateway struct {
	Subnet netip.Prefix `json:"subnet,omitzero"` // IPv4; gateway.DefaultSubnet (10.0.2.0/24) if it is none
	// DNS are the resolvers that are asked; the host's if there are none.
	DNS []netip.AddrPort `json:"dns,omitempty"`
	// Hosts are names that its name server knows.
	Hosts []HostName `json:"hosts,omitempty"`
	// Policy is where the guest may connect to.
	Policy gateway.Policy `json:"policy,omitzero"`
}

// The kinds of networks.
type (
	// User is a gateway of the VM's own: the guest reaches what the host's user does.
	User struct {
		NIC
		Gateway
	}
	// None is no network device at all; it goes with no other.
	None struct{}
	// Tap is a TAP interface of the host.
	Tap struct {
		NIC
		Interface string `json:"interface,omitempty"` // by its name, which ip tuntap add has given
	}
	// Switch joins the VMs of this user that name the same one.
	Switch struct {
		NIC
		Name string `json:"name"` // letters, digits and dashes, at most 63
		// Gateway lets one of the switch's VMs be a gateway for all; nil does not.
		Gateway *Gateway `json:"gateway,omitempty"`
		// Listen is a unix socket where QEMU's stream sockets can join.
		Listen string `json:"listen,omitempty"`
	}
	// Stream is a unix socket with QEMU's framing, as of passt.
	Stream struct {
		NIC
		Path   string `json:"path"`
		Server bool   `json:"server,omitempty"` // listen, and do not connect
	}
	// Datagram is a pair of unix datagram sockets, as of QEMU.
	Datagram struct {
		NIC
		Local  string `json:"local"`
		Remote string `json:"remote"`
	}
)

// Mode implements Net.
func (User) Mode() string { return "user" }

// Mode implements Net.
func (None) Mode() string { return "none" }

// Mode implements Net.
func (Tap) Mode() string { return "tap" }

// Mode implements Net.
func (Switch) Mode() string { return "switch" }

// Mode implements Net.
func (Stream) Mode() string { return "stream" }

// Mode implements Net.
func (Datagram) Mode() string { return "dgram" }

func (n User) card() *NIC     { return &n.NIC }
func (None) card() *NIC       { return &NIC{} }
func (n Tap) card() *NIC      { return &n.NIC }
func (n Switch) card() *NIC   { return &n.NIC }
func (n Stream) card() *NIC   { return &n.NIC }
func (n Datagram) card() *NIC { return &n.NIC }

func (n User) check() error { return n.Gateway.check() }
func (None) check() error   { return nil }
func (Tap) check() error    { return nil }
func (n Switch) check() error {
	if !vmname.Valid(n.Name) {
		return errors.New("a switch's name has only letters, digits and dashes, at most 63")
	}
	if n.Gateway != nil {
		return n.Gateway.check()
	}
	return nil
}
func (n Stream) check() error {
	if n.Path == "" {
		return errors.New("the path is missing")
	}
	return nil
}
func (n Datagram) check() error {
	if n.Local == "" || n.Remote == "" {
		return errors.New("one of the two paths is missing")
	}
	return nil
}

func (g *Gateway) check() error {
	if g.Subnet.IsValid() && !g.Subnet.Addr().Is4() {
		return errors.New("the subnet is an IPv4 network such as 10.0.2.0/24")
	}
	return nil
}

func (n *NIC) check() error {
	switch {
	case n.MAC.Multicast():
		return fmt.Errorf("%v cannot be a device's address", n.MAC)
	case n.Address.IsValid() && !n.Address.Addr().Is4():
		return fmt.Errorf("the address %v is no IPv4 address with its network, such as 10.1.0.5/24", n.Address)
	case n.MTU != 0 && (n.MTU < ether.MinMTU || n.MTU > ether.MaxMTU):
		return fmt.Errorf("MTU %d: between %d and %d bytes", n.MTU, ether.MinMTU, ether.MaxMTU)
	case n.Queues < 0 || n.Queues > net.MaxPairs:
		return fmt.Errorf("%d queues: at most %d pairs", n.Queues, net.MaxPairs)
	case n.BytesPerSecond < 0 || n.PacketsPerSecond < 0:
		return errors.New("a bound below 0")
	}
	return nil
}

// addresses are those that the guest's interfaces have without asking.
func (c *Config) addresses() map[string]netip.Prefix {
	out := map[string]netip.Prefix{}
	for i, n := range c.Nets {
		if a := n.card().Address; a.IsValid() {
			out[fmt.Sprintf("eth%d", i)] = a
		}
	}
	return out
}

// gatewayOf is the gateway that a network has or may have; nil if it has none.
func gatewayOf(n Net) *Gateway {
	switch n := n.(type) {
	case User:
		return &n.Gateway
	case Switch:
		return n.Gateway
	}
	return nil
}

// asksGateway reports whether the guest gets its address on a network from a gateway that is there.
func asksGateway(n Net) bool { return gatewayOf(n) != nil && !n.card().Address.IsValid() }

func (c *Config) checkNets() error {
	published := len(c.Publish) == 0
	for _, n := range c.Nets {
		if n == nil {
			return wrong("Nets", "a network is nil")
		}
		if _, none := n.(None); none && len(c.Nets) > 1 {
			return wrong("Nets", "none goes with no other network")
		}
		if err := errors.Join(n.check(), n.card().check()); err != nil {
			return wrong("Nets", "%s: %w", n.Mode(), err)
		}
		published = published || gatewayOf(n) != nil
	}
	if !published {
		return &ConfigError{"Publish", ErrNoGateway}
	}
	return nil
}

// Nets are a VM's networks, in the order in which the guest finds them. In files each
// is an object whose "mode" says its kind.
type Nets []Net

// netKinds make a value of each kind of what a file has.
var netKinds = map[string]func([]byte) (Net, error){
	"user": readNet[User], "none": readNet[None], "tap": readNet[Tap],
	"switch": readNet[Switch], "stream": readNet[Stream], "dgram": readNet[Datagram],
}

func readNet[T Net](b []byte) (Net, error) {
	var n T
	err := json.Unmarshal(b, &n)
	return n, err
}

// MarshalJSON implements json.Marshaler.
func (l Nets) MarshalJSON() ([]byte, error) {
	out := []json.RawMessage{}
	for _, n := range l {
		fields, err := json.Marshal(n)
		if err != nil {
			return nil, err
		}
		mode := fmt.Sprintf(`{"mode":%q`, n.Mode())
		if string(fields) != "{}" {
			mode += ","
		}
		out = append(out, append([]byte(mode), fields[1:]...))
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *Nets) UnmarshalJSON(b []byte) error {
	var in []json.RawMessage
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*l = nil
	for _, raw := range in {
		var kind struct{ Mode string }
		if err := json.Unmarshal(raw, &kind); err != nil {
			return err
		}
		read, ok := netKinds[kind.Mode]
		if !ok {
			return fmt.Errorf("there is no network of mode %q", kind.Mode)
		}
		n, err := read(raw)
		if err != nil {
			return fmt.Errorf("network %s: %w", kind.Mode, err)
		}
		*l = append(*l, n)
	}
	return nil
}
