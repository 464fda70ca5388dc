package vm

import (
	"fmt"
	"io"

	vconsole "vmm/virtio/console"
)

// ports is the guest's virtio console: its terminal, if it is that, and further ports
// with what is behind them on the host.
type ports struct {
	device *vconsole.Device // nil if there is none
	ends   []endpoint
}

// openPorts opens what the ports lead to. terminal is the console, nil if that is
// another device; files are not in a directory of guest's.
func openPorts(of []Port, terminal io.Writer, guest []string) (_ *ports, err error) {
	p := &ports{}
	if terminal == nil && len(of) == 0 {
		return p, nil
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var devices []vconsole.Port
	for _, port := range of {
		end, err := openEndpoint(port.To, guest)
		if err != nil {
			return nil, &ConfigError{"Ports", fmt.Errorf("%s: %w", port.Name, err)}
		}
		p.ends = append(p.ends, end)
		devices = append(devices, vconsole.Port{Name: port.Name, Out: end})
	}
	p.device, err = vconsole.New(terminal, devices...)
	return p, err
}

// run moves what comes in to the guest, until close.
func (p *ports) run() {
	for i, end := range p.ends {
		if in := end.input(); in != nil {
			go forward(in, func(data []byte) error { return p.device.Receive(i+1, data) })
		}
	}
}

func (p *ports) close() {
	if p == nil {
		return
	}
	for _, end := range p.ends {
		end.close()
	}
}
