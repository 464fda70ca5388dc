package gateway

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"vmm/network/ether"
)

// neighbors are the hardware addresses of the guests' addresses, for packets
// that do not come from the stack, which keeps its own.
type neighbors struct {
	last atomic.Pointer[neighbor]
	mu   sync.Mutex
	macs map[netip.Addr]ether.MAC
}

type neighbor struct {
	addr netip.Addr
	mac  ether.MAC
}

// maxNeighbors bounds them: more are forgotten all at once, and learned again.
const maxNeighbors = 4096

// learn notes who sent a packet of an Ethernet type.
func (n *neighbors) learn(kind uint16, mac ether.MAC, packet []byte) {
	var b []byte
	switch {
	case kind == ether.TypeIPv4:
		b = packet[12:16]
	case kind == ether.TypeIPv6:
		b = packet[8:24]
	case len(packet) >= 18: // ARP's sender (RFC 826)
		b = packet[14:18]
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok || addr.IsUnspecified() || addr.IsMulticast() {
		return
	}
	if l := n.last.Load(); l != nil && l.addr == addr && l.mac == mac {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.macs) >= maxNeighbors {
		clear(n.macs)
	}
	n.macs[addr] = mac
	n.last.Store(&neighbor{addr, mac})
}

func (n *neighbors) find(a netip.Addr) (ether.MAC, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	mac, ok := n.macs[a]
	return mac, ok
}
