package jail

import (
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Begun is what Begin has begun. Nil is nothing. It is for one goroutine at a time.
type Begun struct {
	level    Level
	internet bool
	known    *Rules      // once they are
	rules    chan *Rules // for the thread that makes namespaces; nil if there is none
	done     chan made
}

// made is all of a jail that can be made before it is in force.
type made struct {
	status  Status
	own     spaces
	ruleset int               // of Landlock, or noRuleset
	program []unix.SockFilter // if status has Seccomp
	keep    uint64            // capabilities
	err     error             // of what is not in own
}

// Begin begins with what takes most of the time that Enforce does, for rules with this Internet: beside it other work can be done that does
// not need them yet, and what fails has changed nothing.
// Rules.Begun or Close is for what it returns.
func Begin(level Level, internet bool) *Begun {
	if level == Off {
		return nil
	}
	b := &Begun{level: level, internet: internet, done: make(chan made, 1)}
	if level == Full && privileged() {
		b.rules = make(chan *Rules, 1)
		go onOwnThread(b.makeSpaces)
	}
	return b
}

// onOwnThread has a thread do something that ends with it. The main thread, whose namespaces are in /proc/self and which does not end, is
// not that one.
func onOwnThread(do func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		do()
		return // and the thread with this goroutine
	}
	begun := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(begun)
		do()
	}()
	<-begun // it is on another one
	runtime.UnlockOSThread()
}

// makeSpaces makes a jail with namespaces, of the thread's own.
func (b *Begun) makeSpaces() {
	own := spaces{thread: -1, left: make(chan struct{})}
	left := own.left
	own.err = own.make(b.internet)
	m := made{ruleset: noRuleset}
	if r := <-b.rules; r != nil {
		m = prepare(b.level, r) // while all paths are there
		if own.err == nil {
			own.err = newRoot(r)
		}
	}
	if own.err != nil {
		own.close()
	}
	m.own = own
	b.done <- m
	<-left
}

// prepare makes what needs no thread of its own.
func prepare(level Level, r *Rules) (m made) {
	m.status = able()
	m.status.Level = level
	if level == Landlock {
		m.status.Seccomp = false
	} else {
		m.own.err = errUnprivileged()
	}
	if m.ruleset, m.err = newRuleset(r, m.status.Landlock); m.err != nil {
		return m
	}
	m.keep = r.capabilities()
	if m.status.Seccomp {
		m.program, m.err = filter(allowed(r.families()))
	}
	return m
}

// Root goes on with it, as soon as the rules are known.
func (b *Begun) Root(r Rules) {
	if b == nil || b.known != nil {
		return
	}
	b.known = &r
	if b.rules != nil {
		b.rules <- &r
	} else {
		go func() { b.done <- prepare(b.level, &r) }()
	}
}

// fits reports whether what was begun is for this jail.
func (b *Begun) fits(level Level, r *Rules) bool {
	return b.level == level && b.internet == r.Internet &&
		(b.known == nil || b.known.Connect == r.Connect && slices.Equal(b.known.Paths, r.Paths))
}

// finish returns what was made.
func (b *Begun) finish(r *Rules) made {
	if b.rules == nil && b.known == nil { // nothing that this thread could do beside it
		return prepare(b.level, r)
	}
	b.Root(*r)
	return <-b.done
}

// Close gives up what was begun. When it returns, nothing of that goes on, which a filter could refuse.
func (b *Begun) Close() {
	switch {
	case b == nil || b.rules == nil && b.known == nil:
		return
	case b.known == nil:
		close(b.rules)
	}
	m := <-b.done
	m.close()
}

func (m *made) close() {
	m.own.close()
	unix.Close(m.ruleset)
}
