package vm

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
	"vmm/internal/unixsocket"
	"vmm/virtio/vsock"
)

// guestCID is the guest's address on its vsock, which is its own.
const guestCID = vsock.MinCID

// maxGreetings bounds the agents that say hello: an honest guest has one.
const maxGreetings = 4

// guestAgent is the guest's vsock, and the agent behind it.
type guestAgent struct {
	device   *vsock.Device
	listener *net.UnixListener // of Config.Vsock
	serving  chan struct{}     // closed when the listener is served no more

	once  sync.Once
	ready chan struct{} // closed when the agent can be used, or never can
	err   error
	// held keeps the agent to who sets the guest up, by its command or where it goes on from, until that
	// lets others in; open is closed then.
	held   bool
	opened sync.Once
	open   chan struct{}
}

// openAgent makes the guest's vsock, with unix sockets at path unless that is empty.
func openAgent(path string, cid uint64, held bool) (*guestAgent, error) {
	g := &guestAgent{ready: make(chan struct{}), open: make(chan struct{}), held: held}
	others := func(uint32) (func(*vsock.Conn), error) { return nil, unix.ECONNREFUSED }
	if path != "" {
		others = vsock.ConnectUnix(path)
	}
	greeting := make(chan struct{}, maxGreetings)
	var err error
	if g.device, err = vsock.New(vsock.Options{CID: cid, Connect: func(port uint32) (func(*vsock.Conn), error) {
		if port != agent.Port {
			return others(port)
		}
		select {
		case greeting <- struct{}{}:
			return func(c *vsock.Conn) {
				defer func() { <-greeting }()
				agent.Greet(c, g.hello)
			}, nil
		default:
			return nil, unix.EAGAIN
		}
	}}); err != nil || path == "" {
		return g, err
	}
	if g.listener, err = unixsocket.Listen(path); err != nil {
		return nil, of("Vsock", err)
	}
	g.serving = make(chan struct{})
	go func() {
		defer close(g.serving)
		g.device.ServeUnix(g.listener)
	}()
	return g, nil
}

// hello is what becomes of the agent's Hello.
func (g *guestAgent) hello(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.ready)
	})
	if err != nil || !g.held {
		g.letIn()
	}
}

// letIn lets others use the agent.
func (g *guestAgent) letIn() { g.opened.Do(func() { close(g.open) }) }

func (g *guestAgent) close() {
	if g != nil && g.listener != nil {
		g.listener.Close()
		<-g.serving
	}
}

// wait returns when the agent can be used.
func (g *guestAgent) wait(ctx context.Context) error {
	select {
	case <-g.ready:
		return g.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// waitOpen returns when others than the one who sets the guest up can use the agent.
func (g *guestAgent) waitOpen(ctx context.Context) error {
	select {
	case <-g.open:
		return g.wait(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// greeted reports whether the agent has said hello.
func (g *guestAgent) greeted() bool { return closed(g.ready) && g.err == nil }

// alive reports whether the agent can be used now.
func (g *guestAgent) alive() bool { return closed(g.open) && g.err == nil }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// client speaks to the agent.
func (g *guestAgent) client() *agent.Client {
	return &agent.Client{Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := g.device.Dial(ctx, agent.Port)
		if err != nil {
			return nil, err
		}
		return c, nil
	}}
}

// timeCheck is how often the host's clock is looked at, and maxDrift how far it may
// have been set, or have slept, without the guest being told.
const (
	timeCheck = 10 * time.Second
	maxDrift  = 100 * time.Millisecond
)

// moment is what two clocks of the host showed at a time, of which only one can be
// set, and only one goes on while the host sleeps.
type moment struct{ wall, monotonic time.Duration }

func readClocks() moment {
	read := func(clock int32) time.Duration {
		var ts unix.Timespec
		unix.ClockGettime(clock, &ts) // these two exist
		return time.Duration(ts.Nano())
	}
	return moment{read(unix.CLOCK_REALTIME), read(unix.CLOCK_MONOTONIC)}
}

// jumped reports whether the wall clock was set, or the host slept, since another
// moment.
func (m moment) jumped(since moment) bool {
	step := m.wall - since.wall - (m.monotonic - since.monotonic)
	return step.Abs() >= maxDrift
}

// keepTime sets the guest's clock when the host's has jumped, until ctx ends. The guest
// set it by itself when its agent said hello.
func (g *guestAgent) keepTime(ctx context.Context) {
	last := readClocks()
	for {
		select {
		case <-time.After(timeCheck):
		case <-ctx.Done():
			return
		}
		now := readClocks()
		if now.jumped(last) && g.alive() && g.client().SetTime(ctx) == nil {
			last = now
		}
	}
}
