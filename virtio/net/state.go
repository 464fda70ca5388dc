package net

import (
	"encoding/json"
	"errors"
	"slices"

	"vmm/network/ether"
)

// State is what the driver has set, and the link's state.
type State struct {
	Features    uint64      `json:"features"` // taken, less the guest offloads that were switched off
	MAC         ether.MAC   `json:"mac"`
	Promiscuous bool        `json:"promiscuous"`
	AllMulti    bool        `json:"allMulti"`
	Table       []ether.MAC `json:"table,omitempty"` // further addresses to receive
	Pairs       int32       `json:"pairs"`           // of queues, in use
	Status      uint32      `json:"status"`          // as the driver sees it (5.1.4)
	Up          bool        `json:"up"`              // the cable is plugged in
}

// Save implements virtio.Device.
func (d *Device) Save() (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.filter.get()
	return &State{Features: d.features.Load(), MAC: f.mac, Promiscuous: f.promiscuous, AllMulti: f.allMulti, Table: slices.Clone(f.table),
		Pairs: d.pairs.Load(), Status: d.status.Load(), Up: d.up}, nil
}

// Load implements virtio.Device.
func (d *Device) Load(state []byte) error {
	var s State
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	if s.Pairs < 1 || int(s.Pairs) > d.opts.Pairs || len(s.Table) > maxTable {
		return errors.New("no state of a network device")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.features.Store(s.Features)
	d.filter.set(filterState{s.MAC, s.Promiscuous, s.AllMulti, s.Table})
	d.pairs.Store(s.Pairs)
	d.status.Store(s.Status)
	d.up = s.Up
	d.link.Offloads(offloads(s.Features))
	return nil
}
