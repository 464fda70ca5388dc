package api

import "fmt"

// Error is an answer that is an error: a code for programs and a message for people.
// Two of the same code are the same to errors.Is, on whichever side of the socket.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// ErrorAnswer is the JSON of an answer whose status is not 2xx.
type ErrorAnswer struct {
	Error *Error `json:"error"`
}

// The errors of the API. Any other has the code of ErrFailed.
var (
	ErrBadRequest = &Error{"badRequest", "the request cannot be understood"}
	ErrNotFound   = &Error{"notFound", "the VM has no such thing"}
	ErrMethod     = &Error{"method", "the path has no such method"}
	ErrConflict   = &Error{"conflict", "the VM cannot do that now"}
	// ErrNotRunning is that of a VM that has ended, or ends before it has answered, or has not begun.
	ErrNotRunning  = &Error{"notRunning", "the VM is not running"}
	ErrPaused      = &Error{"paused", "the VM is paused already"}
	ErrNotPaused   = &Error{"notPaused", "the VM is not paused"}
	ErrNoRoom      = &Error{"noRoom", "the VM waits for room on the host's disk"}
	ErrConfined    = &Error{"confined", "the VM's process is in a jail, which does not let it do that"}
	ErrNotParent   = &Error{"notParent", "a snapshot is neither the last of this VM nor what it was restored from"}
	ErrShrink      = &Error{"shrink", "the disk would lose data"}
	ErrNoGateway   = &Error{"noGateway", "this VM has no gateway, by which ports are published"}
	ErrNoAgent     = &Error{"noAgent", "this VM is without an agent"}
	ErrAgentSilent = &Error{"agentSilent", "the guest's agent does not answer"}
	ErrNoConsole   = &Error{"noConsole", "this VM's console is where it was started"}
	// ErrMigrationUnknown is that of a VM that may run on the other side or not: it
	// stands still here until one has looked.
	ErrMigrationUnknown = &Error{"migrationUnknown", "whether the VM has moved is not known"}
	ErrFailed           = &Error{"failed", "the VM failed to do that"}
)

// Errors are all of them.
var Errors = []*Error{ErrBadRequest, ErrNotFound, ErrMethod, ErrConflict, ErrNotRunning, ErrPaused, ErrNotPaused, ErrNoRoom, ErrConfined, ErrNotParent, ErrShrink,
	ErrNoGateway, ErrNoAgent, ErrAgentSilent, ErrNoConsole, ErrMigrationUnknown, ErrFailed}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// With returns an Error of the same code with a message of its own.
func (e *Error) With(format string, args ...any) *Error {
	return &Error{e.Code, fmt.Sprintf(format, args...)}
}
