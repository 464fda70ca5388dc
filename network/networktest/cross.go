package networktest

import "vmm/network/ether"

// Cross joins two links, as a crossover cable joins two devices: what one has
// for its device is sent to the other.
func Cross(a, b ether.Link) {
	a.Attach(end{b})
	b.Attach(end{a})
	all := ether.Offloads{Checksum: true, TCP4: true, TCP6: true}
	a.Offloads(all)
	b.Offloads(all)
}

// end is a device whose frames go to a link.
type end struct{ to ether.Link }

// Receive implements ether.NIC.
func (e end) Receive(_ uint32, h ether.Header, parts [][]byte) bool {
	e.to.Send(0, h, parts)
	return true
}

// Flush implements ether.NIC.
func (e end) Flush() { e.to.Sent(0) }
