package vm

import (
	"context"
	"time"
)

// Wait returns how the guest has ended, once it has and nothing of it is left. The error
// is the VM's own failure, or ctx's.
func (v *VM) Wait(ctx context.Context) (Result, error) {
	select {
	case <-v.ended:
		return v.result, v.err
	case <-ctx.Done():
		return Result{}, context.Cause(ctx)
	}
}

// Done is closed when the guest has ended and nothing of it is left.
func (v *VM) Done() <-chan struct{} { return v.ended }

// Kill ends the VM at once, as pulling the plug does.
func (v *VM) Kill() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.started && !v.closed {
		v.machine.Stop()
	}
}

// Stop asks the guest to shut down, by its agent or by the power button, and waits until
// it has. If ctx ends before, the VM is ended and ctx's error returned.
func (v *VM) Stop(ctx context.Context) error {
	if err := v.Shutdown(ctx); err != nil {
		return err
	}
	_, err := v.Wait(ctx)
	if ctx.Err() != nil {
		v.Kill()
		<-v.ended
	}
	return err
}

// shutdownPatience is how long after a Shutdown the agent of a guest that boots still is asked: who has asked has
// given up or ended the VM then, and a guest that gets an agent later is not to be shut down by that.
const shutdownPatience = time.Minute

// Shutdown asks the guest to shut down, and does not wait. One that boots still may not hear the power button:
// its agent is asked as soon as it is there.
func (v *VM) Shutdown(ctx context.Context) error {
	if err := v.running(); err != nil {
		return err
	}
	if v.guest.alive() && v.guest.client().Shutdown(ctx) == nil {
		return nil
	}
	v.machine.PressPowerButton()
	if !v.cfg.NoAgent && !v.guest.alive() {
		select {
		case v.leave <- struct{}{}:
		default: // that is asked for
		}
	}
	return nil
}

// followShutdown has a guest that was to shut down before its agent was there do so.
func (v *VM) followShutdown(life context.Context) {
	for {
		select {
		case <-life.Done():
			return
		case <-v.leave:
		}
		ctx, cancel := context.WithTimeout(life, shutdownPatience)
		if v.guest.waitOpen(ctx) == nil {
			v.guest.client().Shutdown(ctx) // an error is that it has ended
		}
		cancel()
	}
}

// PressPowerButton asks the guest to shut down as a PC's button does.
func (v *VM) PressPowerButton() {
	if v.running() == nil {
		v.machine.PressPowerButton()
	}
}

// Close ends the VM if it runs, and what Prepare and Start are doing, and frees all of it.
// It can be called at any time, and more than once.
func (v *VM) Close() error {
	v.end(ErrNotRunning)
	v.making.Lock()
	if !v.started && !v.closed {
		v.abandon()
	}
	v.making.Unlock()
	<-v.ended
	return v.err
}

// Refuse closes a VM that a Receiver has made and that cannot run here, and tells the
// other side why.
func (v *VM) Refuse(why error) error {
	v.making.Lock()
	if !v.started {
		v.from.refuse(why)
	}
	v.making.Unlock()
	return v.Close()
}
