package fs

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// State is a mount of the guest, as Save returns it.
type State struct {
	Init   []byte          `json:"init,omitempty"`   // the FUSE_INIT request that began it; none if nothing is mounted
	FS     json.RawMessage `json:"fs,omitempty"`     // the files that the guest knows
	Parked []uint16        `json:"parked,omitempty"` // descriptor chains of requests that wait for a lock
}

// Save implements virtio.Device.
func (d *Device) Save() (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &State{Parked: slices.Clone(d.parked)}
	if m := d.session.Load(); m != nil {
		var err error
		if s.FS, err = m.fs.Save(); err != nil {
			return nil, err
		}
		s.Init = bytes.Clone(m.init)
	}
	return s, nil
}

// Load implements virtio.Device.
func (d *Device) Load(state []byte) error {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	d.parked, d.stopping = s.Parked, true
	if len(s.Init) == 0 {
		return nil
	}
	if len(s.Init) < inHeaderSize {
		return errors.New("no FUSE_INIT request")
	}
	m, err := d.begin(s.Init)
	if err != nil {
		return err
	}
	d.session.Store(m)
	// The server learns what it agreed on with the guest's kernel.
	if _, status := m.server.HandleRequest([][]byte{s.Init}, [][]byte{make([]byte, maxMessage)}); status != fuse.OK {
		return errors.New("the saved FUSE_INIT request is refused: " + status.String())
	}
	return m.fs.Load(s.FS)
}
