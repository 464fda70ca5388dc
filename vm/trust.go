package vm

import (
	"fmt"
	"slices"
	"strings"
)

// UntrustedError is the error for a saved VM that another user has saved, or that was
// changed since, and that would open something of this host by its own word.
type UntrustedError struct {
	What string // which saved VM
	// Opens is what it would open, a line each.
	Opens []string
}

// Error implements error.
func (e *UntrustedError) Error() string {
	return fmt.Sprintf("%s was not saved by you on this host, or was changed since. It would open:\n  %s", e.What, strings.Join(e.Opens, "\n  "))
}

// checkTrust returns an *UntrustedError if the saved VM opens something of the host that
// neither the options give nor its user has signed.
func (r *source) checkTrust(what string, o *RestoreOptions) error {
	if o.Trust || r.trusted {
		return nil
	}
	if opens := r.vm.opens(o, r.copies || o.Copy); len(opens) > 0 {
		return &UntrustedError{what, opens}
	}
	return nil
}

// opens is what the saved VM opens of the host by its own word: what the options give in
// its place is the user's. A copy has fewer things of its own.
func (s *saved) opens(o *RestoreOptions, copies bool) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, d := range s.Disks {
		add("the disk %q, and the backing files that it names", d.Path)
	}
	for _, p := range s.Config.Pmems {
		add("the file %q as memory, read-only", p.Path)
	}
	if r := s.Config.Root; r != nil && r.Image != nil {
		for _, path := range r.Image.Segments {
			add("the file %q of a container image, read-only", path)
		}
	}
	for _, m := range s.Shares {
		how := "writable"
		if m.Options.ReadOnly {
			how = "read-only"
		}
		add("the directory %q, %s", m.Dir, how)
		if m.Lock != "" {
			add("the file %q, to lock it", m.Lock)
		}
	}
	if len(o.Nets) == 0 {
		for _, n := range s.Config.Nets {
			out = append(out, netOpens(n)...)
		}
	}
	if copies {
		return out // it has no ports and sockets, unless the options give them
	}
	if len(o.Publish) == 0 {
		for _, p := range s.Config.Publish {
			add("the port %v, for the guest's %d", p.Host, p.Guest)
		}
	}
	if s.Config.Vsock != "" && o.Vsock == "" {
		add("the socket %q, for the guest's vsock", s.Config.Vsock)
	}
	for _, p := range s.Config.Ports {
		given := slices.ContainsFunc(o.Ports, func(g Port) bool { return g.Name == p.Name })
		if to := p.To.File + p.To.Socket; to != "" && !given {
			add("%q, for the guest's port %s", to, p.Name)
		}
	}
	return out
}

// netOpens is what a network opens beside what any guest is given.
func netOpens(n Net) []string {
	var g Gateway
	var out []string
	switch n := n.(type) {
	case User:
		g = n.Gateway
	case None:
	case Tap:
		out = append(out, fmt.Sprintf("the network interface %q", n.Interface))
	case Switch:
		if out = append(out, fmt.Sprintf("the switch %q", n.Name)); n.Gateway != nil {
			g = *n.Gateway
		}
		if n.Listen != "" {
			out = append(out, fmt.Sprintf("the socket %q, of the switch", n.Listen))
		}
	case Stream:
		out = append(out, fmt.Sprintf("the socket %q, as a network", n.Path))
	case Datagram:
		out = append(out, fmt.Sprintf("the sockets %q and %q, as a network", n.Local, n.Remote))
	default:
		out = append(out, fmt.Sprintf("a network of kind %T", n))
	}
	for _, resolver := range g.DNS { // it is asked from this host, whatever the policy
		out = append(out, fmt.Sprintf("the resolver %v, for the guest's names", resolver))
	}
	for _, r := range g.Policy.Rules {
		if r.Allow {
			out = append(out, fmt.Sprintf("the network %v, ports %d to %d", r.Net, r.First, r.Last))
		}
	}
	return out
}
