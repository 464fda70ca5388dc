package console

import (
	"encoding/json"
	"errors"
	"slices"
)

// State is the console's size, its ports, and the messages for its driver.
type State struct {
	Cols     uint16      `json:"cols"`
	Rows     uint16      `json:"rows"`
	Ports    []PortState `json:"ports"`
	Messages [][]byte    `json:"messages,omitempty"` // of the control queue
}

// PortState is one port's.
type PortState struct {
	Open bool `json:"open"` // the guest reads it
}

// Save implements virtio.Device. Input that the guest has not taken stays with
// who sent it.
func (d *Device) Save() (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &State{Cols: d.cols, Rows: d.rows, Messages: slices.Clone(d.messages)}
	for _, p := range d.ports {
		s.Ports = append(s.Ports, PortState{p.open})
	}
	return s, nil
}

// Load implements virtio.Device.
func (d *Device) Load(state []byte) error {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(s.Ports) != len(d.ports) || len(s.Messages) > maxControl {
		return errors.New("a console with other ports")
	}
	d.cols, d.rows, d.messages = s.Cols, s.Rows, s.Messages
	for i, p := range s.Ports {
		d.ports[i].open = p.Open
	}
	return nil
}
