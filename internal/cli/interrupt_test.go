package cli

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInterrupts: a signal ends the context of a command, which has its status then.
func TestInterrupts(t *testing.T) {
	ctx := withInterrupts(t.Context())
	unix.Kill(os.Getpid(), unix.SIGHUP)
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("the context goes on")
	}
	var exit *exitError
	if err := interrupted(ctx, context.Canceled); !errors.As(err, &exit) || exit.status != 128+int(unix.SIGHUP) || exit.Error() != "interrupted" {
		t.Errorf("%v", err)
	}
	if err := interrupted(ctx, &exitError{128 + int(unix.SIGHUP), nil}); !errors.As(err, &exit) || exit.err != nil {
		t.Errorf("what was told already is told again: %v", err)
	}
	if err := interrupted(ctx, nil); err != nil {
		t.Errorf("what has ended well all the same: %v", err)
	}
	endCommand(ctx) // or the process would be ended
}

// TestTakeSignals: who has a use of its own for signals is not ended by them.
func TestTakeSignals(t *testing.T) {
	ctx := withInterrupts(t.Context())
	takeSignals(ctx)
	takeSignals(ctx)
	if err := errors.New("x"); interrupted(ctx, err) != err || ctx.Err() != nil {
		t.Error("interrupted by nothing")
	}
	takeSignals(t.Context()) // of no command
}
