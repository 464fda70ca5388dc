package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"vmm/internal/version"
	"vmm/machine/migration"
)

// DefaultDowntime is how long a guest that moves may stand still where nothing else is
// said.
const DefaultDowntime = 300 * time.Millisecond

// MigrateOptions say how a VM moves.
type MigrateOptions struct {
	// Key is what Listen has returned for the Receiver; a unix socket needs none.
	Key string
	// Conn is a connection to the Receiver, where this process cannot make one itself; nil
	// connects. Migrate closes it.
	Conn net.Conn
	// Downtime is how long the guest may stand still; DefaultDowntime if 0.
	Downtime time.Duration
	// Progress is told how many bytes of memory were sent in all, and in which round, from 1,
	// by the goroutine of Migrate; nil drops it.
	Progress func(sent int64, round int)
}

// MigrateResult tells how it went.
type MigrateResult = migration.Result

// ErrUnknownEnd is in the error of Migrate if the connection broke just when the other
// side was told to go on: the VM is paused here, and may run there.
var ErrUnknownEnd = migration.ErrUnknown

// Migrate moves the VM to a Receiver at tcp://HOST:PORT or unix:PATH, while it runs: it
// stands still only for the end of it. Its disks and shared directories must be there by
// the same paths. When it has moved, Wait returns here. After an error it goes on here, but
// for ErrUnknownEnd. Other errors are ErrConfined, ErrKey, ErrNoSpace, ErrPmemWritable, the
// cause of ctx's end, what the other side says, and the network's.
func (v *VM) Migrate(ctx context.Context, address string, o MigrateOptions) (*MigrateResult, error) {
	end, err := v.beginSaving()
	if err != nil {
		return nil, err
	}
	defer end()
	for _, d := range v.disks.disks {
		if d.temporary() {
			return nil, fmt.Errorf("what the guest writes to the disk %s is in a file without a name, which cannot move", d.image.File.Name())
		}
	}
	if o.Downtime == 0 {
		o.Downtime = DefaultDowntime
	}
	hello := migration.Hello{VMM: version.String(), Memory: uint64(v.cfg.Memory), CPUs: v.cfg.CPUs, Name: v.cfg.Name}
	conn := o.Conn
	if conn == nil {
		if conn, err = v.dial(ctx, address); err != nil {
			return nil, err
		}
	}
	peer, err := openPeer(ctx, conn, address, o.Key, &hello)
	if err != nil {
		return nil, err
	}
	v.saver.base = "" // what was written since is told to the other side
	result, err := migration.Send(ctx, peer, v.machine, migration.Options{
		Hello: hello, Downtime: o.Downtime, Progress: o.Progress, Release: v.disks.release, Reclaim: v.disks.reopen,
		Config: func() ([]byte, error) {
			vm := v.describe()
			for _, d := range v.disks.disks {
				vm.Disks = append(vm.Disks, d.moved())
			}
			return json.Marshal(vm)
		},
	})
	if errors.Is(err, migration.ErrUnknown) {
		v.saver.pauseMu.Lock()
		defer v.saver.pauseMu.Unlock()
		if v.saver.released = true; v.saver.paused {
			result.Resume() // the user's own pause is left
		} else {
			v.saver.paused, v.saver.resume = true, result.Resume
		}
	}
	if err != nil {
		return nil, err
	}
	v.saver.movedTo = address
	return result, nil
}

// dial connects to a Receiver. From a jail no socket of another directory can be seen,
// and where the VM has no gateway no address can be reached: ErrConfined then.
func (v *VM) dial(ctx context.Context, address string) (net.Conn, error) {
	network, _, err := SplitAddress(address)
	if err != nil {
		return nil, err
	}
	if v.offline.Load() || network == "unix" && v.confined.Load() {
		return nil, ErrConfined
	}
	return Dial(ctx, address)
}

// MovedTo returns where the VM is that is not here any more; "" if it has not moved.
func (v *VM) MovedTo() string {
	v.saver.mu.Lock()
	defer v.saver.mu.Unlock()
	return v.saver.movedTo
}

// moved is the disk for another process, which opens the file itself.
func (d *vmDisk) moved() savedDisk {
	s := savedDisk{Disk: d.cfg}
	if d.file != "" {
		s.Path = d.file
	}
	s.AnyBacking = true
	return s
}

// Receiver waits for one VM that moves here.
type Receiver struct {
	l     net.Listener
	token string
	own   bool // only this user can send
	log   func(error)
}

// Receive waits until a source has sent its VM, and makes one that goes on where that
// is once it is started. Sources that do not know the key are told to log, and refused.
// It ends with ctx, whose error it returns then; a source that is sending goes on.
func (r *Receiver) Receive(ctx context.Context, o RestoreOptions, list ...Option) (*VM, error) {
	return r.receive(ctx, &o, newOptions(list))
}

func (r *Receiver) receive(ctx context.Context, o *RestoreOptions, opts *options) (_ *VM, err error) {
	defer opts.abandon(&err)
	d, err := r.accept(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.Receive(ctx); err != nil {
		d.Close()
		return nil, fmt.Errorf("receiving a VM: %w", err)
	}
	s := &source{state: d.Final.State, received: d.Memory, moved: true, trusted: r.own, peer: d}
	if err = s.vm.unmarshal(d.Final.Config); err == nil {
		var v *VM
		if v, err = s.make("the VM that was sent", o, opts); err == nil {
			return v, nil
		}
	}
	s.refuse(err)
	return nil, errors.Join(err, s.close())
}

// refuse tells the source that its VM cannot run here, unless it knows that it can.
func (r *source) refuse(err error) {
	if r == nil || r.peer == nil {
		return
	}
	if err != nil {
		r.peer.Refuse(err)
	}
	r.peer.Close()
	r.peer = nil
}

// Bounds of the sources that have not proved yet that they know the key: how many there
// may be at a time, for each has buffers, and how long one may take.
const (
	maxProving  = 16
	provingTime = 10 * time.Second
)

var errProving = errors.New("it has not proved in time that it knows the key")

// accept waits for a source that knows the key. One that says nothing keeps no other out.
func (r *Receiver) accept(ctx context.Context) (*migration.Destination, error) {
	waiting, enough := context.WithCancel(ctx)
	defer enough()
	defer r.l.Close()
	defer context.AfterFunc(waiting, func() { r.l.Close() })()
	first := make(chan *migration.Destination, 1)
	proving := make(chan struct{}, maxProving)
	var all sync.WaitGroup
	for {
		c, err := r.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // too many open files, which may pass
			continue
		}
		select {
		case proving <- struct{}{}:
		default:
			c.Close()
			continue
		}
		all.Go(func() {
			defer func() { <-proving }()
			bounded, cancel := context.WithTimeoutCause(waiting, provingTime, errProving)
			defer cancel()
			d, err := migration.Accept(bounded, c, r.token)
			if err != nil {
				if waiting.Err() == nil {
					r.log(fmt.Errorf("refused a VM from %v: %w", c.RemoteAddr(), err))
				}
				return
			}
			select {
			case first <- d:
				enough()
			default:
				d.Refuse(errors.New("another VM came first"))
				d.Close()
			}
		})
	}
	enough()
	all.Wait()
	select {
	case d := <-first:
		return d, nil
	default:
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, net.ErrClosed
}

// Close ends a Receiver that nothing was received by.
func (r *Receiver) Close() error { return r.l.Close() }

// takeOver tells where a VM has come from that it runs here now.
func (v *VM) takeOver(ctx context.Context) error {
	if v.from == nil || v.from.peer == nil {
		return nil
	}
	ctx, stop := v.within(ctx)
	defer stop()
	if err := v.from.peer.Ready(ctx); err != nil {
		return err
	}
	v.from.refuse(nil)
	return nil
}
