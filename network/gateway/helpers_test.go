package gateway

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vmm/network/networktest"
)

// connect connects an endpoint of a guest's.
func connect(s *stack.Stack, to netip.AddrPort) (tcpip.Endpoint, error) {
	var queue waiter.Queue
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &queue)
	if err != nil {
		return nil, errors.New(err.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	ep.Connect(tcpip.FullAddress{NIC: networktest.NIC, Addr: address(to.Addr()), Port: to.Port()})
	select {
	case <-ready:
		if err := ep.LastError(); err != nil {
			return nil, errors.New(err.String())
		}
		return ep, nil
	case <-time.After(20 * time.Second):
		return nil, os.ErrDeadlineExceeded
	}
}

// countSockets is how many sockets this process has open.
func countSockets() (n int, err error) {
	const dir = "/proc/self/fd/"
	list, err := os.ReadDir(dir)
	for _, e := range list {
		if to, err := os.Readlink(dir + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n, err
}
