package vm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vmm/guest-images/agent"
	"vmm/internal/paths"
	"vmm/machine"
	"vmm/machine/migration"
	"vmm/machine/snapshot"
	"vmm/network/ether"
	"vmm/network/gateway"
	"vmm/storage/image"
	"vmm/storage/share"
	"vmm/virtio/vsock"
)

// saved is how a saved VM is made again: all but its state and memory.
type saved struct {
	Version int         `json:"version"` // savedVersion
	Config  Config      `json:"config"`  // without its disks and shares
	Disks   []savedDisk `json:"disks,omitempty"`
	// Segments are those of Config.Root.Image.
	Segments []savedDisk `json:"segments,omitempty"`
	// Pmems are those of Config.Pmems.
	Pmems  []savedDisk  `json:"pmems,omitempty"`
	NICs   []savedNIC   `json:"nics,omitempty"`
	Shares []savedShare `json:"shares,omitempty"`
	CID    uint64       `json:"cid"`
	Agent  bool         `json:"agent"` // the guest's agent answered
	// Untold is what a guest for commands had not been told before its first: Config of an agent.Setup.
	Untold json.RawMessage `json:"untold,omitempty"`
}

// savedVersion is saved.Version. Version 1 had no such field, and the text of flags.
const savedVersion = 2

// savedDisk is a disk as it was: nobody may change the file meanwhile. Its path is
// absolute, or of a file in the snapshot.
type savedDisk struct {
	Disk
	Size    int64 `json:"size"`           // of the file, in bytes
	Changed int64 `json:"changed"`        // when the file was, in nanoseconds since 1970
	Temp    bool  `json:"temp,omitempty"` // what the guest writes was not to be kept
}

// savedNIC is what the network of an interface had in use.
type savedNIC struct {
	MAC ether.MAC      `json:"mac"`
	TCP []gateway.Conn `json:"tcp,omitempty"` // connections through the gateway
}

// savedShare is a directory of the host that the guest has.
type savedShare struct {
	Tag     string        `json:"tag"`
	Dir     string        `json:"dir"`
	Options share.Options `json:"options"`
	Lock    string        `json:"lock,omitempty"` // as Share.Lock
}

// ErrOldSnapshot is in the error for a snapshot whose description of the VM this
// build does not understand.
var ErrOldSnapshot = errors.New("another version of vmm has saved this VM, which describes it in another way: save it with this one")

// unmarshal reads a description.
func (s *saved) unmarshal(b []byte) error {
	var version struct{ Version int }
	if err := json.Unmarshal(b, &version); err != nil {
		return err
	}
	if version.Version != savedVersion {
		return ErrOldSnapshot
	}
	return json.Unmarshal(b, s)
}

// note keeps how the disk's file looks now.
func (d *savedDisk) note(size int64, changed time.Time, err error) error {
	d.Size, d.Changed = size, changed.UnixNano()
	return err
}

// check finds out whether the file is as it was.
func (d *savedDisk) check(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the disk that the snapshot goes with: %w", err)
	}
	if st.Size() != d.Size || st.ModTime().UnixNano() != d.Changed && filepath.IsAbs(d.Path) {
		return fmt.Errorf("the disk %s has changed since the snapshot was taken, which is of no use without it as it was", path)
	}
	return nil
}

// source is what a VM goes on from.
type source struct {
	snapshot *snapshot.Snapshot // nil if the VM comes from another process
	vm       saved
	state    *machine.State
	ram      []machine.Backing
	overlays string // a directory for what the guest writes to its disks; temporary files if empty
	prefetch bool
	// copies makes the guest another one than the saved one, whatever its name.
	copies bool
	moved  bool // the saved VM is no more
	// trusted is what this user has signed, or could only send.
	trusted bool
	// Of a VM that comes from another process: its memory, until the machine has it, and
	// the other side, until it is told that the VM runs here, or cannot.
	received *machine.Memory
	peer     *migration.Destination
	// warm is a start of another VM's: the Config is the new one's, and the guest is
	// told what it does not know together with its first command.
	warm bool
}

// openSnapshot reads what a snapshot says of its VM.
func openSnapshot(dir string, o snapshot.Options) (*source, error) {
	s, err := snapshot.Open(dir, o)
	if err != nil {
		return nil, err
	}
	r := &source{snapshot: s, state: s.State, ram: s.Backings()}
	if err := r.vm.unmarshal(s.Config); err != nil {
		if !errors.Is(err, ErrOldSnapshot) {
			err = fmt.Errorf("%w: %v", snapshot.ErrCorrupt, err)
		}
		return nil, errors.Join(&snapshot.Error{Dir: dir, Err: err}, s.Close())
	}
	return r, nil
}

// close frees what no machine has taken over.
func (r *source) close() error {
	if r == nil {
		return nil
	}
	var err error
	if r.snapshot != nil {
		err = r.snapshot.Close()
	}
	if r.received != nil {
		err = errors.Join(err, r.received.Close())
		r.received = nil
	}
	return err
}

// handOver says that the machine owns the memory from now on.
func (r *source) handOver() {
	if r != nil {
		r.received = nil
	}
}

// id is the snapshot's; "" where there is none.
func (r *source) id() string {
	if !r.saved() || r.snapshot == nil {
		return ""
	}
	return r.snapshot.ID
}

// saved reports whether the VM is a saved one that goes on, and no warm start.
func (r *source) saved() bool { return r != nil && !r.warm }

// early reports whether the VM was saved before its agent could be used: it boots still.
func (r *source) early() bool { return r.saved() && !r.vm.Agent }

// explain tells of which snapshot an error is.
func (r *source) explain(err error) error {
	var known *snapshot.Error
	if r == nil || r.snapshot == nil || errors.As(err, &known) {
		return err
	}
	return &snapshot.Error{Dir: r.snapshot.Dir, Err: err}
}

// macs are the addresses that the network devices keep.
func (r *source) macs() []ether.MAC {
	if r == nil || r.copies && !r.warm {
		return nil
	}
	var out []ether.MAC
	for _, n := range r.vm.NICs {
		out = append(out, n.MAC)
	}
	return out
}

// cid is the guest's address on its vsock: a copy has one of its own.
func (r *source) cid(name string) uint64 {
	switch {
	case r == nil:
		return guestCID
	case !r.copies:
		return r.vm.CID
	}
	sum := sha256.Sum256([]byte(name))
	return vsock.MinCID + 1 + uint64(binary.LittleEndian.Uint32(sum[:])>>1)
}

// openDisks opens the saved VM's disks.
func (r *source) openDisks() (_ *diskSet, err error) {
	s := &diskSet{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for i, d := range r.vm.Disks {
		now := d.Disk
		if !filepath.IsAbs(d.Path) {
			// An overlay names it, wherever that is.
			if now.Path, err = paths.Abs(r.snapshot.Path(d.Path)); err != nil {
				return nil, err
			}
		}
		if !r.moved {
			if err := d.check(now.Path); err != nil {
				return nil, r.explain(err)
			}
		}
		now.AnyBacking = true // it was allowed, or is ours
		switch {
		case d.ReadOnly || r.moved:
		case r.overlays == "" || d.Temp:
			now.Ephemeral = true
		default:
			if now.Path, err = r.overlay(i, now.Path, d.Format); err != nil {
				return nil, err
			}
			now.Format = image.Qcow2
		}
		if err := s.open(now); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// overlay makes a file for what the guest writes to disk i.
func (r *source) overlay(i int, path, format string) (string, error) {
	name := filepath.Join(r.overlays, fmt.Sprintf("disk-%d.qcow2", i))
	return name, image.Create(name, image.CreateOptions{Format: image.Qcow2, Backing: path, BackingFormat: format})
}

// machineConfig is that of the machine.
func (r *source) machineConfig(c *Config) *machine.Config {
	m := &machine.Config{CPUs: c.CPUs, Memory: uint64(c.Memory), Nested: c.Nested, CPUModel: c.CPUModel, Transport: c.Transport,
		State: r.state, RAM: r.ram, TrackDirty: !r.warm, Received: r.received,
		Moved: r.moved || r.warm} // warm, the agent gets new randomness before anything is run
	if r.snapshot != nil && (r.prefetch || r.warm) {
		m.Prefetch = r.snapshot.WorkingSet()
		// Best effort: the snapshot may be another user's.
		if (m.Prefetch == nil || r.prefetch) && r.snapshot.PrepareWorkingSet() == nil {
			m.Ending = r.noteWorkingSet
		}
	}
	return m
}

// noteWorkingSet keeps which memory the guest has used, for the next prefetch.
func (r *source) noteWorkingSet(mem *machine.Memory) {
	if set, err := mem.WorkingSet(); err == nil {
		r.snapshot.NoteWorkingSet(set)
	}
}

// setupTimeout is how long a restored guest's agent may take to answer, on a host
// that many others keep busy: until then nobody may take a copy for the original.
const setupTimeout = 2 * time.Minute

// firstTry is how long it may take to answer the first time; each further try may
// take twice as long.
const firstTry = 5 * time.Second

// settle does what a guest needs when it goes on: it is told the time, and who it is
// if it is a copy. Others can use its agent then.
func (r *source) settle(ctx context.Context, v *VM) {
	if r.early() {
		if v.guest.wait(ctx) != nil {
			return
		}
		defer v.guest.letIn()
	} else {
		defer v.guest.hello(nil)
	}
	if r.warm {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	var err error
	for timeout := firstTry; ctx.Err() == nil; timeout *= 2 {
		// A guest that has just got another address drops all connections, so it may
		// need a second try.
		try, end := context.WithTimeout(ctx, timeout)
		err = v.guest.client().Setup(try, r.newSetup(v))
		if end(); err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if context.Cause(ctx) == context.DeadlineExceeded {
		v.opts.log(fmt.Errorf("the restored guest could not be told the time and its name: %w", err))
	}
}

// freshSetup is what every guest is told that goes on from a snapshot: the time, and
// random numbers that no other has.
func freshSetup() *agent.Setup {
	s := &agent.Setup{Now: time.Now(), Entropy: make([]byte, 32)}
	rand.Read(s.Entropy)
	return s
}

// newSetup is what the guest is to be told.
func (r *source) newSetup(v *VM) *agent.Setup {
	s := freshSetup()
	s.Config = r.vm.Untold
	if r.moved {
		s.Entropy = nil
	}
	if !r.copies {
		return s
	}
	var id [16]byte
	rand.Read(id[:])
	s.Hostname, s.MachineID, s.MACs = v.cfg.GuestName(), hex.EncodeToString(id[:]), map[string]string{}
	for i, n := range v.nets.nics {
		s.MACs[fmt.Sprintf("eth%d", i)] = n.opts.MAC.String()
	}
	return s
}

// probeTimes are when the guest is asked for its connections of before: it may not
// listen at once.
var probeTimes = []time.Duration{50 * time.Millisecond, time.Second, 5 * time.Second}

// probe ends the connections that went through the gateway of the saved VM.
func (r *source) probe(ctx context.Context, v *VM) {
	for _, wait := range probeTimes {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		for i, n := range r.vm.NICs {
			if i >= len(v.nets.nics) {
				return
			}
			if g := v.nets.nics[i].gateway.Load(); g != nil {
				for _, mac := range []ether.MAC{n.MAC, v.nets.nics[i].device.MAC()} {
					g.Probe(mac, n.TCP)
				}
			}
		}
	}
}
