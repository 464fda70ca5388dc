package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"vmm/guest-images/agent"
	"vmm/machine"
	"vmm/machine/snapshot"
	"vmm/network/ether"
	"vmm/storage/image"
	"vmm/virtio/vsock"
)

// restored is what a VM goes on from.
type restored struct {
	snapshot *snapshot.Snapshot // nil if the VM comes from another process
	vm       savedVM
	state    *machine.State
	ram      []machine.Backing
	overlays string // a directory for what the guest writes to its disks; temporary files if empty
	prefetch bool
	// copies makes the guest another one than the saved one, whatever its name.
	copies bool
	moved  bool // the saved VM is no more
	// Of a VM that comes from another process: its memory, and what lets it run here,
	// once it could.
	received  *machine.Memory
	confirm   func() error
	confirmed bool
	// warm is a start of another VM's: the flags are the new one's, and the guest is
	// told what it does not know together with its command.
	warm bool
}

// openSnapshot reads what a snapshot says of its VM.
func openSnapshot(dir string, o snapshot.Options) (*restored, error) {
	s, err := snapshot.Open(dir, o)
	if err != nil {
		return nil, err
	}
	r := &restored{snapshot: s, state: s.State, ram: s.Backings()}
	if err := json.Unmarshal(s.Config, &r.vm); err != nil {
		return nil, errors.Join(&snapshot.Error{Dir: dir, Err: fmt.Errorf("%w: %v", snapshot.ErrCorrupt, err)}, s.Close())
	}
	return r, nil
}

func (r *restored) close() {
	if r.snapshot != nil {
		r.snapshot.Close()
	}
}

// id is the snapshot's; "" where there is none.
func (r *restored) id() string {
	if r == nil || r.snapshot == nil || r.warm {
		return ""
	}
	return r.snapshot.ID
}

// explain tells of which snapshot an error is.
func (r *restored) explain(err error) error {
	var known *snapshot.Error
	if r == nil || r.snapshot == nil || errors.As(err, &known) {
		return err
	}
	return &snapshot.Error{Dir: r.snapshot.Dir, Err: err}
}

// take makes flags those of the saved VM, but for what the user has given.
func (r *restored) take(f *runFlags) error {
	vm := &r.vm
	f.restored = r
	f.cpus, f.memory, f.hugePages, f.nested = vm.CPUs, byteSize(vm.Memory), vm.HugePages, vm.Nested
	f.transport, f.terminal, f.onENOSPC, f.noAgent, f.kernel = vm.Transport, vm.Terminal, vm.OnENOSPC, vm.NoAgent, vm.Kernel
	if len(f.nets) == 0 {
		f.nets = vm.Nets
	} else if n := max(len(vm.Nets), 1); len(f.nets) != n {
		return &exitError{statusUsage, fmt.Errorf("--net: the saved VM has %d networks, and %d are given", n, len(f.nets))}
	}
	if f.name == "" {
		f.name = vm.Name
	} else if f.name != vm.Name && !r.moved { // what has moved is there only once
		r.copies = true
	}
	for i, spec := range vm.Ports {
		name, _, _ := strings.Cut(spec, "=")
		if r.copies { // which must not write to the same file
			vm.Ports[i] = name + "=" + portNone
		}
		for _, given := range f.ports {
			if strings.HasPrefix(given, name+"=") {
				vm.Ports[i] = given
			}
		}
	}
	f.ports = vm.Ports
	if !r.copies {
		if len(f.publish) == 0 {
			f.publish = vm.Publish
		}
		if f.vsock == "" {
			f.vsock = vm.Vsock
		}
	}
	return nil
}

// cid is the guest's address on its vsock: a copy has one of its own.
func (r *restored) cid(name string) uint64 {
	if !r.copies {
		return r.vm.CID
	}
	sum := sha256.Sum256([]byte(name))
	return vsock.MinCID + 1 + uint64(binary.LittleEndian.Uint32(sum[:])>>1)
}

// openDisks opens the saved VM's disks.
func (r *restored) openDisks(s *diskSet) (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for i, d := range r.vm.Disks {
		path := d.Path
		if !filepath.IsAbs(path) {
			// An overlay names it, wherever that is.
			if path, err = filepath.Abs(r.snapshot.Path(path)); err != nil {
				return err
			}
		}
		if !r.moved {
			if err := d.check(path); err != nil {
				return r.explain(err)
			}
		}
		o := d.Options
		o.AnyBacking = true // it was allowed, or is ours
		flag := diskFlag{path: path, serial: d.Serial, queues: d.Queues, limit: d.Limit, image: o}
		switch {
		case o.ReadOnly || r.moved:
		case r.overlays == "" || d.Temp:
			flag.image.Snapshot = true
		default:
			if flag.path, err = r.overlay(i, path, o.Format); err != nil {
				return err
			}
			flag.image.Format = image.Qcow2
		}
		img, err := image.Open(flag.path, flag.image)
		if err != nil {
			return err
		}
		s.flags, s.open = append(s.flags, flag), append(s.open, img)
	}
	return nil
}

// overlay makes a file for what the guest writes to disk i.
func (r *restored) overlay(i int, path, format string) (string, error) {
	name := filepath.Join(r.overlays, fmt.Sprintf("disk-%d.qcow2", i))
	return name, image.Create(name, image.CreateOptions{Backing: path, BackingFormat: format})
}

// machineConfig is that of the machine.
func (r *restored) machineConfig(f *runFlags) *machine.Config {
	c := &machine.Config{CPUs: f.cpus, Memory: uint64(f.memory), Nested: f.nested, Transport: machine.Transport(f.transport),
		State: r.state, RAM: r.ram, TrackDirty: !r.warm, Received: r.received,
		Moved: r.moved || r.warm} // warm, the agent gets new randomness before anything is run
	if r.snapshot != nil && (r.prefetch || r.warm) {
		c.Prefetch = r.snapshot.WorkingSet()
		if c.Prefetch == nil || r.prefetch {
			c.Ending = r.noteWorkingSet
		}
	}
	return c
}

// noteWorkingSet keeps which memory the guest has used, for the next prefetch.
func (r *restored) noteWorkingSet(mem *machine.Memory) {
	if set, err := mem.WorkingSet(); err == nil {
		r.snapshot.NoteWorkingSet(set) // best effort: the snapshot may be another user's
	}
}

// setupPatience is how long a restored guest's agent may take to answer, on a host
// that many others keep busy: until then nobody may take a copy for the original.
const setupPatience = 2 * time.Minute

// firstTry is how long it may take to answer the first time; each further try may
// take twice as long.
const firstTry = 5 * time.Second

// settle does what a guest needs when it goes on: it is told the time, and who it is
// if it is a copy, and its connections of before end.
func (r *restored) settle(ctx context.Context, f *runFlags, p *parts) {
	go r.probe(ctx, p)
	if !r.vm.Agent || r.warm {
		if r.vm.Agent {
			p.guest.hello(nil)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, setupPatience)
	defer cancel()
	var err error
	for patience := firstTry; ctx.Err() == nil; patience *= 2 {
		// A guest that has just got another address drops all connections, so it may
		// need a second try.
		try, end := context.WithTimeout(ctx, patience)
		err = p.guest.client().Setup(try, r.newSetup(f, p))
		if end(); err == nil {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if err != nil && context.Cause(ctx) == context.DeadlineExceeded {
		fmt.Fprintf(p.console.messages(), "vmm: the restored guest could not be told the time and its name: %v\n", err)
	}
	p.guest.hello(nil)
}

// newSetup is what the guest is to be told.
func (r *restored) newSetup(f *runFlags, p *parts) *agent.Setup {
	s := &agent.Setup{Now: time.Now(), Entropy: make([]byte, 32)}
	rand.Read(s.Entropy)
	if r.moved {
		s.Entropy = nil
	}
	if !r.copies {
		return s
	}
	var id [16]byte
	rand.Read(id[:])
	s.Hostname, s.MachineID, s.MACs = f.name, hex.EncodeToString(id[:]), map[string]string{}
	for i := range p.nets.nics {
		s.MACs[fmt.Sprintf("eth%d", i)] = p.nets.flags[i].nic.MAC.String()
	}
	return s
}

// probeTimes are when the guest is asked for its connections of before: it may not
// listen at once.
var probeTimes = []time.Duration{50 * time.Millisecond, time.Second, 5 * time.Second}

// probe ends the connections that went through the gateway of the saved VM.
func (r *restored) probe(ctx context.Context, p *parts) {
	for _, wait := range probeTimes {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		for i, n := range r.vm.NICs {
			if i >= len(p.nets.nics) {
				return
			}
			if g := p.nets.nics[i].gateway.Load(); g != nil {
				for _, mac := range []ether.MAC{n.MAC, p.nets.nics[i].device.MAC()} {
					g.Probe(mac, n.TCP)
				}
			}
		}
	}
}
