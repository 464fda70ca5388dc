package bench

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"vmm/virtio"
	"vmm/virtio/virtiotest"
)

// Requests of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst).
const (
	vhostGetFeatures  = 1
	vhostSetFeatures  = 2
	vhostSetOwner     = 3
	vhostSetMemTable  = 5
	vhostSetVringNum  = 8
	vhostSetVringAddr = 9
	vhostSetVringBase = 10
	vhostSetVringKick = 12
	vhostSetVringCall = 13
	vhostGetProtocol  = 15
	vhostSetProtocol  = 16
	vhostSetEnable    = 18
	vhostVersion      = 1
	vhostProtocolFlag = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	vhostProtocolConf = 1 << 9  // VHOST_USER_PROTOCOL_F_CONFIG
)

// vhostUser is the front-end of a vhost-user device: the part that QEMU plays
// for a guest.
type vhostUser struct {
	c *net.UnixConn
}

func dialVhostUser(path string) (*vhostUser, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			return &vhostUser{c}, nil
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

func (v *vhostUser) send(request uint32, body []byte, fds ...int) error {
	m := binary.LittleEndian.AppendUint32(nil, request)
	m = binary.LittleEndian.AppendUint32(m, vhostVersion)
	m = binary.LittleEndian.AppendUint32(m, uint32(len(body)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := v.c.WriteMsgUnix(append(m, body...), oob, nil)
	return err
}

func (v *vhostUser) ask(request uint32) (uint64, error) {
	if err := v.send(request, nil); err != nil {
		return 0, err
	}
	var b [20]byte
	for n := 0; n < len(b); {
		k, err := v.c.Read(b[n:])
		if err != nil {
			return 0, err
		}
		n += k
	}
	return binary.LittleEndian.Uint64(b[12:]), nil
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// vhostBase is where the front-end has its memory: any number.
const vhostBase = uint64(0x7f0000000000)

func state(index int, v uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(index)), v)
}

// start sets queues up and returns their drivers.
func (v *vhostUser) start(mem *virtiotest.Memory, sizes ...uint16) ([]*virtiotest.Driver, error) {
	features, err := v.ask(vhostGetFeatures)
	if err != nil {
		return nil, err
	}
	if features&virtio.FeatureVersion1 == 0 {
		return nil, fmt.Errorf("features %#x", features)
	}
	features &= virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | vhostProtocolFlag
	if features&vhostProtocolFlag != 0 {
		p, err := v.ask(vhostGetProtocol)
		if err != nil {
			return nil, err
		}
		if err := v.send(vhostSetProtocol, u64(p&vhostProtocolConf)); err != nil {
			return nil, err
		}
	}
	table := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, 1), 0)[:8]
	for _, f := range []uint64{0, uint64(len(mem.Bytes)), vhostBase, 0} {
		table = append(table, u64(f)...)
	}
	for _, m := range []vhostMessage{
		{vhostSetOwner, nil, nil},
		{vhostSetFeatures, u64(features), nil},
		{vhostSetMemTable, table, []int{mem.FD}},
	} {
		if err := v.send(m.request, m.body, m.fds...); err != nil {
			return nil, err
		}
	}
	var out []*virtiotest.Driver
	for i, n := range sizes {
		d, err := v.startQueue(mem, i, n, features)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

type vhostMessage struct {
	request uint32
	body    []byte
	fds     []int
}

func (v *vhostUser) startQueue(mem *virtiotest.Memory, i int, n uint16, features uint64) (*virtiotest.Driver, error) {
	kick, err := virtio.NewEvent()
	if err != nil {
		return nil, err
	}
	d, err := virtiotest.NewDriver(mem, virtiotest.QueueEnd(i), n, features, kick.FD())
	if err != nil {
		return nil, err
	}
	addr := state(i, 0)
	for _, a := range []uint64{vhostBase + d.Layout.Desc, vhostBase + d.Layout.Used, vhostBase + d.Layout.Avail, 0} {
		addr = append(addr, u64(a)...)
	}
	for _, m := range []vhostMessage{
		{vhostSetVringNum, state(i, uint32(n)), nil},
		{vhostSetVringBase, state(i, 0), nil},
		{vhostSetVringAddr, addr, nil},
		{vhostSetVringCall, u64(uint64(i)), []int{d.Call.FD()}},
		{vhostSetVringKick, u64(uint64(i)), []int{kick.FD()}},
		{vhostSetEnable, state(i, 1), nil},
	} {
		if err := v.send(m.request, m.body, m.fds...); err != nil {
			return nil, err
		}
	}
	return d, nil
}
