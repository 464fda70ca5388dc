package api

import (
	"net/netip"
	"strconv"
	"time"
)

// Version is that of the protocol, which all paths begin with. A field that is new
// leaves it as it is; a change that an older side would misunderstand raises it.
const Version = "v1"

// The paths of the requests. Requests and answers are JSON, if they are not empty.
const (
	PathVM      = "/v1/vm"      // GET: VM
	PathStats   = "/v1/stats"   // GET: Stats
	PathMetrics = "/v1/metrics" // GET: the same in Prometheus' text format

	PathStop   = "/v1/stop"   // POST: asks the guest to shut down
	PathKill   = "/v1/kill"   // POST: ends the VM
	PathPause  = "/v1/pause"  // POST: stops the guest where it is; ErrPaused
	PathResume = "/v1/resume" // POST: lets it go on; ErrNotPaused

	PathSnapshot = "/v1/snapshot" // POST: SnapshotRequest; Event[SnapshotResult] a line
	PathMigrate  = "/v1/migrate"  // POST: MigrateRequest; Event[MigrateResult] a line

	PathResize = "/v1/disks/resize" // POST: ResizeRequest; ErrNotFound, ErrShrink, ErrConflict
	PathPorts  = "/v1/ports"        // GET: []Port; POST and DELETE: Port, which is the answer too; ErrNoGateway, ErrNotFound, ErrConflict
	PathNICs   = "/v1/nics"         // GET: []NIC
	PathLink   = "/v1/nics/link"    // POST: LinkRequest; ErrNotFound

	// What follows becomes another connection after 101, with these values of Upgrade.
	PathAgent   = "/v1/agent"   // POST: ErrNoAgent, ErrAgentSilent
	PathConsole = "/v1/console" // POST: ErrNoConsole
	PathGDB     = "/v1/gdb"     // POST
)

// The protocols to which a connection can be upgraded.
const (
	ProtocolAgent   = "vmm-agent"   // one connection to the guest's agent
	ProtocolConsole = "vmm-console" // the bytes of the console
	ProtocolGDB     = "vmm-gdb"     // gdb's remote protocol
)

// MaxBody bounds a request, an answer, and a line of an answer in lines, in bytes.
const MaxBody = 1 << 20

// Stats is what a VM has used since it began.
type Stats struct {
	CPUSeconds []float64         `json:"cpuSeconds"` // of the thread of each virtual CPU
	Exits      map[string]uint64 `json:"exits"`      // how often virtual CPUs came back, by reason
	Resident   uint64            `json:"resident"`   // bytes of the process, the guest's memory included
	Private    int64             `json:"private"`    // bytes of the guest's memory that are not shared with a snapshot's file
	Disks      []Transfer        `json:"disks,omitempty"`
	NICs       []Transfer        `json:"nics,omitempty"`
}

// Transfer is what went through a device, in bytes, from the guest's side.
type Transfer struct {
	Device string `json:"device"` // disk0, eth0, ...
	In     uint64 `json:"in"`     // read or received
	Out    uint64 `json:"out"`    // written or sent
}

// SnapshotRequest asks for a VM to be saved. The paths are absolute.
type SnapshotRequest struct {
	Dir      string `json:"dir"`                // does not exist yet
	Replace  bool   `json:"replace,omitempty"`  // or is an older snapshot
	Parent   string `json:"parent,omitempty"`   // save only the memory that has changed since this snapshot; ErrNotParent
	Zstd     bool   `json:"zstd,omitempty"`     // compress the memory
	DiskCopy bool   `json:"diskCopy,omitempty"` // copy the disks into the snapshot
	Stop     bool   `json:"stop,omitempty"`     // end the VM when it is saved
	// Files are the names of files whose descriptors come with the request's first byte
	// (SCM_RIGHTS), in this order: the VM writes to them, and who has asked gives the
	// snapshot its name. Without them the VM makes the directory itself, which one in a jail
	// cannot. ParentID is what Parent calls itself, then.
	Files    []string `json:"files,omitempty"`
	ParentID string   `json:"parentID,omitempty"`
	// Overlays are new, empty files for what the guest writes from then on, by the
	// PinnedDisks, which they are to lie beside. Files has each twice, opened once for each:
	// as its path, and with DirectSuffix. Without them the VM makes them, which one in a
	// jail cannot.
	Overlays map[string]string `json:"overlays,omitempty"`
}

// DirectSuffix follows the path of an overlay in SnapshotRequest.Files for the descriptor
// that a disk without the host's cache (O_DIRECT) needs beside the other.
const DirectSuffix = ":direct"

// SnapshotResult is what became of it.
type SnapshotResult struct {
	Paused time.Duration     `json:"paused"`          // how long the guest stood still, in nanoseconds
	Disks  map[string]string `json:"disks,omitempty"` // the files that the VM writes to now, by those that the snapshot has
}

// MigrateRequest asks a VM to move. Hanging up before the end leaves it where it is.
type MigrateRequest struct {
	Address  string        `json:"address"`       // tcp://HOST:PORT or unix:PATH, absolute
	Key      string        `json:"key,omitempty"` // what the receiver has printed; for TCP
	Downtime time.Duration `json:"downtime"`      // how long the guest may stand still, in nanoseconds
	// Connected says that a connection to Address comes with the request's first byte
	// (SCM_RIGHTS). Without it the VM connects itself, which one in a jail cannot
	// everywhere.
	Connected bool `json:"connected,omitempty"`
}

// MigrateResult is how a VM has moved.
type MigrateResult struct {
	Rounds   int           `json:"rounds"`   // how often its memory was sent, from 1
	Sent     int64         `json:"sent"`     // bytes of memory
	Downtime time.Duration `json:"downtime"` // how long the guest stood still, in nanoseconds
}

// Event is a line of an answer to a request that takes long: now and then one with
// Progress, and at the end one with Result or Error.
type Event[Result any] struct {
	Progress *Progress `json:"progress,omitempty"`
	Result   *Result   `json:"result,omitempty"`
	Error    *Error    `json:"error,omitempty"`
}

// Progress is how far something is, in bytes of the guest's memory.
type Progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	Round int   `json:"round,omitempty"` // of a migration, from 1
}

// ResizeRequest asks for a disk to be resized: to Size bytes, or by as many where Sign
// is "+" or "-".
type ResizeRequest struct {
	Path   string `json:"path"` // of its image: absolute, without symbolic links
	Sign   string `json:"sign,omitempty"`
	Size   int64  `json:"size"`             // bytes
	Shrink bool   `json:"shrink,omitempty"` // it may lose its last bytes
}

// Port is a port of the host's that leads to one of the guest's.
type Port struct {
	UDP   bool           `json:"udp,omitempty"`  // else it is TCP's
	Host  netip.AddrPort `json:"host"`           // port 0 is one that is free
	Last  uint16         `json:"last,omitempty"` // to publish the first that is free from Host's port to this one
	Guest uint16         `json:"guest"`
}

// String writes it as people do: HOST:PORT:GUEST[/udp].
func (p Port) String() string {
	s := p.Host.String() + ":" + strconv.Itoa(int(p.Guest))
	if p.UDP {
		s += "/udp"
	}
	return s
}

// NIC is a network device, with what went over it since the VM began.
type NIC struct {
	Mode           string `json:"mode"` // what is behind it
	MAC            string `json:"mac"`
	Up             bool   `json:"up"`             // the cable is plugged in
	Received       Count  `json:"received"`       // by the guest
	Sent           Count  `json:"sent"`           // by the guest
	TCPConnections int    `json:"tcpConnections"` // through its gateway, now
	UDPFlows       int    `json:"udpFlows"`       // the same of UDP
}

// Count is what went in one direction. A packet that is to be segmented counts once.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Dropped uint64 `json:"dropped"` // packets
}

// LinkRequest plugs a network device's cable in or out.
type LinkRequest struct {
	NIC int  `json:"nic"` // from 0
	Up  bool `json:"up"`
}
