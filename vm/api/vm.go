// Package api defines what goes over the control socket of a VM: the paths, the
// requests, the answers and the errors. It has no behaviour; vm/server serves it and
// vm/client asks it.
//
// Sizes are bytes, times RFC 3339, and durations nanoseconds unless their name says
// seconds. A field that is missing is its zero value.
package api

import (
	"encoding/json"
	"time"
)

// State is what a VM's process is doing.
type State string

// The states of a VM.
const (
	Running    State = "running"    // paused or not
	Restarting State = "restarting" // it has ended, and is about to be started again
	Exited     State = "exited"
	// Broken is one whose process lives, but has left nothing readable of itself: its name and its process are known.
	Broken State = "broken"
)

// VM says which VM it is. It is the answer to [PathVM], and is kept in the VM's
// directory as long as it is listed.
type VM struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"` // of its process
	State   State     `json:"state"`
	Status  *int      `json:"status,omitempty"` // exit status of one that has ended, or of its last run, 0 to 255; nil if it is not known
	Detail  string    `json:"detail,omitempty"` // why it ended
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	// Command is what runs in the guest; empty if that is a system of its own.
	Command []string          `json:"command,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Restart says when it is started again after its end ("" is never), Restarts how often it was, and Supervisor
	// is the process that does so: where it gets SIGTERM, the VM is ended and stays so.
	Restart    string `json:"restart,omitempty"`
	Restarts   int    `json:"restarts,omitempty"`
	Supervisor int    `json:"supervisor,omitempty"`
	// Image is the container image that is the guest's root, as it was named, and ImageDigest its digest.
	Image       string `json:"image,omitempty"`
	ImageDigest string `json:"imageDigest,omitempty"`
	// StopSeconds is how long the command has to end when it is told to; nil leaves it to who tells it.
	StopSeconds *int     `json:"stopSeconds,omitempty"`
	CPUs        int      `json:"cpus"`
	Memory      uint64   `json:"memory"` // bytes
	Kernel      string   `json:"kernel,omitempty"`
	Disks       []string `json:"disks,omitempty"`
	// PinnedDisks are those that a snapshot keeps as they are while the VM goes on, which
	// writes to overlays beside them then; while it runs.
	PinnedDisks []string `json:"pinnedDisks,omitempty"`
	Shares      []string `json:"shares,omitempty"`
	// GuestWritable are the host's directories that the guest can write to, while it runs.
	GuestWritable []string `json:"guestWritable,omitempty"`
	Nets          []string `json:"nets,omitempty"`
	// Detached VMs run in the background, and are listed when they have ended.
	Detached bool `json:"detached,omitempty"`
	Agent    bool `json:"agent"`            // the guest's agent answers
	Paused   bool `json:"paused,omitempty"` // by a request
	// Health is what the last health checks have found, while it runs; nil if nobody looks.
	Health *Health `json:"health,omitempty"`
	// Engine is what executes the guest, kvm or software, and EngineReason why it is that one; while it runs.
	Engine       string `json:"engine,omitempty"`
	EngineReason string `json:"engineReason,omitempty"`
	// Config is what it is made of, while it runs: a vm.Config, with its version. It has no disks and shares of
	// one that was restored or received.
	Config json.RawMessage `json:"config,omitempty"`
	// Jail tells what the VM's process is confined to; "" if it is not.
	Jail string `json:"jail,omitempty"`
	// Limits tells what the VM's process may take of the host; "" if nothing bounds it.
	Limits string `json:"limits,omitempty"`
	// Cgroup is the control group in which they hold, as long as there is one.
	Cgroup string `json:"cgroup,omitempty"`
	// CgroupKills is how often the host had killed for memory around it when it was made; nil without a limit of memory.
	CgroupKills *uint64 `json:"cgroupKills,omitempty"`
}

// Health is whether what a VM is there for is well.
type Health struct {
	Status   string `json:"status"`           // starting, healthy or unhealthy
	Failures int    `json:"failures"`         // checks since the last success
	Output   string `json:"output,omitempty"` // of the last check
}
