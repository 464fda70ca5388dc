package gateway

import (
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	resolvConf = "/etc/resolv.conf"
	// resolvFor is for how long it is remembered.
	resolvFor = 5 * time.Second
	maxDots   = 15  // of resolv.conf(5)
	maxDomain = 253 // bytes of a name without its last dot (RFC 1035, 2.3.4)
)

// HostNames are how the host looks names up, for a guest to do it alike.
type HostNames struct {
	Search []string // domains in which short names are looked for
	Dots   int      // a name with so many dots is not short (ndots); 1 if nobody says otherwise
}

// Equal reports whether both are the same.
func (h HostNames) Equal(o HostNames) bool {
	return h.Dots == o.Dots && slices.Equal(h.Search, o.Search)
}

// resolvFile is the host's resolv.conf, which may change.
type resolvFile struct {
	path string

	mu      sync.Mutex
	servers []string // with their ports
	names   HostNames
	read    time.Time
}

// now returns what the file says. One that is not to be read leaves what was known.
func (h *resolvFile) now() (servers []string, names HostNames) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.read.IsZero() || time.Since(h.read) >= resolvFor {
		if h.read.IsZero() {
			h.names.Dots = 1
		}
		h.read = time.Now()
		if b, err := os.ReadFile(h.path); err == nil {
			h.servers, h.names = parseResolv(string(b))
		}
	}
	return h.servers, h.names
}

// parseResolv reads a resolv.conf(5). Of several lists of domains the last one holds.
func parseResolv(text string) (servers []string, names HostNames) {
	names.Dots = 1
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, net.JoinHostPort(f[1], "53"))
		case "domain":
			names.Search = f[1:2]
		case "search":
			names.Search = f[1:]
		case "options":
			for _, o := range f[1:] {
				if v, ok := strings.CutPrefix(o, "ndots:"); ok {
					if n, err := strconv.Atoi(v); err == nil && n >= 0 {
						names.Dots = min(n, maxDots)
					}
				}
			}
		}
	}
	var search []string
	for _, d := range names.Search {
		d = strings.TrimSuffix(d, ".")
		if isDomain(d) {
			search = append(search, d)
		}
	}
	names.Search = search
	return servers, names
}

// isDomain reports whether a text is a domain as programs of the guest may be given it.
func isDomain(s string) bool {
	if len(s) > maxDomain {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return false
		}
	}
	return true
}

// resolvers are the name servers to ask, the configured ones or the host's.
func (n *nameServer) resolvers() []string {
	if n.g.cfg.Resolvers == nil {
		servers, _ := n.host.now()
		return servers
	}
	var out []string
	for _, r := range n.g.cfg.Resolvers {
		out = append(out, r.String())
	}
	return out
}

// HostNames returns how the host looks names up now; a guest that cannot ask for the host's
// names has none of it. It reads the host's configuration every few seconds at most.
func (g *Gateway) HostNames() HostNames {
	if g.names == nil || g.cfg.Policy.NoNames {
		return HostNames{Dots: 1}
	}
	_, names := g.names.host.now()
	return names
}
