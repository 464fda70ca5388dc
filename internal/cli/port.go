package cli

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmm/machine"
	"vmm/virtio/console"
	"vmm/vm/registry"
)

const portUsage = "a virtio-serial port: `NAME=FILE`, NAME=unix:PATH or NAME=none; the guest has it as /dev/virtio-ports/NAME; several are possible"

// portNone is the end of a port that leads nowhere.
const portNone = "none"

// terminalDevices are what the console can be in the guest.
var terminalDevices = []string{"serial", "virtio"}

// ports is the guest's virtio console: its terminal, if it is that, and further
// ports with what is behind them on the host.
type ports struct {
	device   *console.Device // nil if there is none
	terminal bool            // the console is hvc0
	backends []*hostConsole
}

// openPorts opens what --port names. out is the console's output.
func (f *runFlags) openPorts(con *hostConsole) (_ *ports, err error) {
	p := &ports{terminal: f.terminal == "virtio"}
	if !p.terminal && len(f.ports) == 0 {
		return p, nil
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var devices []console.Port
	for _, spec := range f.ports {
		name, to, ok := strings.Cut(spec, "=")
		if !ok || !registry.ValidName(strings.NewReplacer(".", "", "_", "").Replace(name)) || to == "" {
			return nil, &exitError{statusUsage, fmt.Errorf("--port %q: NAME=FILE or NAME=unix:PATH", spec)}
		}
		if slices.ContainsFunc(devices, func(d console.Port) bool { return d.Name == name }) {
			return nil, &exitError{statusUsage, fmt.Errorf("--port %q: there is a port of that name already", spec)}
		}
		var b *hostConsole
		if to == portNone {
			b = &hostConsole{Writer: io.Discard, restore: func() {}}
		} else if path, isUnix := strings.CutPrefix(to, "unix:"); isUnix {
			b, err = listenConsole(path)
		} else {
			b, err = fileConsole(to)
		}
		if err != nil {
			return nil, fmt.Errorf("--port %s: %w", name, err)
		}
		p.backends = append(p.backends, b)
		devices = append(devices, console.Port{Name: name, Out: b})
	}
	var terminal io.Writer
	if p.terminal {
		terminal = con
	}
	p.device, err = console.New(terminal, devices...)
	return p, err
}

// run moves what comes in to the guest, until close.
func (p *ports) run() {
	for i, b := range p.backends {
		go b.copyInput(func(data []byte) error { return p.device.Receive(i+1, data) }, consoleActions{})
	}
	if p.terminal {
		go p.followSize()
	}
}

// followSize tells the guest the terminal's size whenever it changes.
func (p *ports) followSize() {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	for {
		if cols, rows, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
			p.device.Resize(cols, rows)
		}
		<-changes
	}
}

// input is where the terminal's input goes.
func (p *ports) input(m *machine.Machine) func([]byte) error {
	if p.terminal {
		return func(b []byte) error { return p.device.Receive(0, b) }
	}
	return m.Input
}

func (p *ports) close() {
	for _, b := range p.backends {
		b.restore()
	}
}
