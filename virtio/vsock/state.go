package vsock

import (
	"cmp"
	"encoding/json"
	"errors"
	"slices"

	"vmm/virtio"
)

// State is the guest's address and its connections, which all end: the host's
// sides of them are not where the state goes.
type State struct {
	CID   uint64      `json:"cid"`
	Conns []ConnState `json:"connections,omitempty"`
	// NextPort is that of the host's next connection. The guest may still be about to
	// end those before.
	NextPort uint32 `json:"nextPort,omitempty"`
}

// ConnState is the ports of a connection.
type ConnState struct {
	Host  uint32 `json:"host"`
	Guest uint32 `json:"guest"`
}

// Save implements virtio.Device.
func (d *Device) Save() (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &State{CID: d.opts.CID, NextPort: d.nextPort}
	for k := range d.conns {
		s.Conns = append(s.Conns, ConnState{k.host, k.guest})
	}
	slices.SortFunc(s.Conns, func(a, b ConnState) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Guest, b.Guest))
	})
	return s, nil
}

// Load implements virtio.Device. The guest learns that its connections have
// ended before anything else, and of its address if that is another now.
func (d *Device) Load(state []byte) error {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	if len(s.Conns) > maxConns {
		return errors.New("too many vsock connections")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.oldCID, d.moved = s.CID, s.CID != d.opts.CID
	d.nextPort = max(d.nextPort, s.NextPort)
	for _, c := range s.Conns {
		d.tell(header{srcCID: HostCID, dstCID: s.CID, srcPort: c.Host, dstPort: c.Guest, kind: typeStream, op: opReset})
		d.nextPort = max(d.nextPort, c.Host+1)
	}
	return nil
}

// eventSize is that of struct virtio_vsock_event (5.10.6.7).
const eventSize = 4

// sendEvent tells the driver of a new address by VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
// which is 0: it reads its address again.
func (d *Device) sendEvent(q *virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.moved {
		return nil
	}
	var c virtio.Chain
	ok, err := q.Pop(&c)
	if err != nil || !ok {
		return err
	}
	for n, w := 0, c.Writable; n < eventSize && len(w) > 0; w = w[1:] {
		k := min(eventSize-n, len(w[0]))
		clear(w[0][:k])
		n += k
	}
	q.Push(&c, eventSize)
	q.Notify()
	d.moved = false
	return nil
}
