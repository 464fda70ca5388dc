package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/hostpid"
)

// interrupts ends a command's context by a signal, so that the command clears away what
// it was making. A second signal ends the process at once, and so does time: not all that
// a command does looks at its context.
type interrupts struct {
	signals chan os.Signal
	done    chan struct{} // closed when signals are none of ours any more
	over    chan struct{} // closed when the command has ended
	once    sync.Once
}

type interruptsKey struct{}

// interruptTime is how long a command may take to clear up.
const interruptTime = 20 * time.Second

// withInterrupts returns a context that SIGINT, SIGTERM and SIGHUP end. Its cause is then
// an *exitError.
func withInterrupts(ctx context.Context) context.Context {
	i := &interrupts{signals: make(chan os.Signal, 1), done: make(chan struct{}), over: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, interruptsKey{}, i))
	signal.Notify(i.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		var s os.Signal
		select {
		case s = <-i.signals:
		case <-i.done:
			select {
			case s = <-i.signals: // it came before, and there is nobody else to hear of it
			default:
				return
			}
		}
		i.end()
		cancel(&exitError{128 + int(s.(unix.Signal)), errors.New("interrupted")})
		time.AfterFunc(interruptTime, func() {
			select {
			case <-i.over:
			default:
				if hostpid.Own() { // signals' defaults do not end it
					os.Exit(128 + int(s.(unix.Signal)))
				}
				unix.Kill(os.Getpid(), s.(unix.Signal))
			}
		})
	}()
	return ctx
}

func (i *interrupts) end() {
	i.once.Do(func() {
		signal.Stop(i.signals)
		close(i.done)
	})
}

// takeSignals is for who has a use of its own for signals from now on, such as passing
// them on to a guest: they do not end ctx any more.
func takeSignals(ctx context.Context) {
	if i, ok := ctx.Value(interruptsKey{}).(*interrupts); ok {
		i.end()
	}
}

// endCommand says that the command has ended.
func endCommand(ctx context.Context) {
	takeSignals(ctx)
	close(ctx.Value(interruptsKey{}).(*interrupts).over)
}

// interrupted returns the error of a command that a signal has ended, in the place of
// what came of that, unless the command has told of the signal itself.
func interrupted(ctx context.Context, err error) error {
	var cause, told *exitError
	if err == nil || !errors.As(context.Cause(ctx), &cause) {
		return err
	}
	if errors.As(err, &told) && told.err == nil && told.status == cause.status {
		return err
	}
	return cause
}
