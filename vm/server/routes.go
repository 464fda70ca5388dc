package server

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"vmm/vm/api"
)

// route serves one method of a path.
type route struct {
	serve func(*Server, http.ResponseWriter, *http.Request) error
	// request and answer are values of their types, nil if there is none. lines is set
	// if the answer is lines of such, and protocol if the connection becomes another.
	request, answer any
	lines           bool
	protocol        string
}

// routes are all, by path and method.
var routes = map[string]map[string]route{
	api.PathVM:      {"GET": get(VM.Info)},
	api.PathStats:   {"GET": get(VM.Stats)},
	api.PathMetrics: {"GET": {serve: (*Server).metrics}},

	api.PathStop:   {"POST": act(func(ctx context.Context, vm VM) error { return vm.Stop(ctx) })},
	api.PathKill:   {"POST": act(func(_ context.Context, vm VM) error { vm.Kill(); return nil })},
	api.PathPause:  {"POST": act(func(_ context.Context, vm VM) error { return vm.Pause() })},
	api.PathResume: {"POST": act(func(_ context.Context, vm VM) error { return vm.Resume() })},

	api.PathSnapshot: {"POST": follow(VM.Snapshot)},
	api.PathMigrate:  {"POST": follow(VM.Migrate)},

	api.PathResize: {"POST": take(VM.Resize)},
	api.PathPorts: {"GET": get(VM.Ports), "POST": ask(VM.Publish),
		"DELETE": ask(func(vm VM, p api.Port) (api.Port, error) { return p, vm.Unpublish(p) })},
	api.PathNICs: {"GET": get(VM.NICs)},
	api.PathLink: {"POST": take(func(vm VM, r api.LinkRequest) error { return vm.SetLink(r.NIC, r.Up) })},

	api.PathAgent:   {"POST": join(api.ProtocolAgent, agent)},
	api.PathConsole: {"POST": join(api.ProtocolConsole, func(_ context.Context, vm VM) (func(Conn), error) { return vm.Console() })},
	api.PathGDB:     {"POST": join(api.ProtocolGDB, func(_ context.Context, vm VM) (func(Conn), error) { return vm.GDB() })},
}

// get is the route of something to be looked at.
func get[Answer any](look func(VM) Answer) route {
	return route{answer: *new(Answer), serve: func(s *Server, w http.ResponseWriter, _ *http.Request) error {
		answer(w, look(s.vm))
		return nil
	}}
}

// act is the route of something to be done, without more to say.
func act(do func(context.Context, VM) error) route {
	return route{serve: func(s *Server, _ http.ResponseWriter, r *http.Request) error { return do(r.Context(), s.vm) }}
}

// take is the route of a request that is answered with nothing.
func take[Request any](do func(VM, Request) error) route {
	return route{request: *new(Request), serve: func(s *Server, w http.ResponseWriter, r *http.Request) error {
		var req Request
		if err := decode(w, r, &req); err != nil {
			return err
		}
		return do(s.vm, req)
	}}
}

// ask is the route of a request with an answer.
func ask[Request, Answer any](do func(VM, Request) (Answer, error)) route {
	return route{request: *new(Request), answer: *new(Answer), serve: func(s *Server, w http.ResponseWriter, r *http.Request) error {
		var req Request
		if err := decode(w, r, &req); err != nil {
			return err
		}
		a, err := do(s.vm, req)
		if err == nil {
			answer(w, a)
		}
		return err
	}}
}

// follow is the route of what takes long: its answer is lines of events.
func follow[Request, Result any](do func(VM, context.Context, Request, func(api.Progress)) (*Result, error)) route {
	return route{request: *new(Request), answer: *new(api.Event[Result]), lines: true, serve: func(s *Server, w http.ResponseWriter, r *http.Request) error {
		var req Request
		if err := decode(w, r, &req); err != nil {
			return err
		}
		e := events[Result]{w: w}
		result, err := do(s.vm, r.Context(), req, e.progress)
		if err == nil {
			e.send(api.Event[Result]{Result: result})
		} else if !e.begun {
			return err
		} else {
			e.send(api.Event[Result]{Error: errorFor(err)})
		}
		return nil
	}}
}

// eventEvery is how often somebody is told how far something is, at most.
const eventEvery = 200 * time.Millisecond

// events sends events, a line each.
type events[Result any] struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	last  time.Time
	begun bool
}

// progress sends an event if the last one is some time ago.
func (e *events[Result]) progress(p api.Progress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.last) > eventEvery {
		e.last = time.Now()
		e.sendLocked(api.Event[Result]{Progress: &p})
	}
}

func (e *events[Result]) send(event api.Event[Result]) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sendLocked(event)
}

func (e *events[Result]) sendLocked(event api.Event[Result]) {
	if !e.begun {
		e.w.Header().Set("Content-Type", "application/jsonl")
		e.begun = true
	}
	json.NewEncoder(e.w).Encode(event)
	http.NewResponseController(e.w).Flush()
}
