package vm

import (
	"net/netip"
	"slices"
	"testing"

	"vmm/network/gateway"
	"vmm/storage/share"
)

// TestOpens holds what a saved VM is said to open of the host.
func TestOpens(t *testing.T) {
	home := netip.MustParsePrefix("192.168.0.0/16")
	everything := saved{
		Config: Config{
			Nets: Nets{User{Gateway: Gateway{DNS: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:6379")}, Policy: gateway.Policy{Rules: []gateway.Rule{
				{Allow: true, Net: home, First: 22, Last: 22}, {Net: home, First: 1, Last: 65535}}}}}, Tap{Interface: "tap0"}},
			Publish: []gateway.Publication{{Host: netip.MustParseAddrPort("0.0.0.0:80"), Guest: 8080}},
			Vsock:   "/run/v", Ports: []Port{{Name: "a", To: Endpoint{File: "/home/me/a"}}, {Name: "b", To: Endpoint{Socket: "/run/b"}}, {Name: "c"}},
		},
		Disks:  []savedDisk{{Disk: Disk{Path: "/disks/x.qcow2"}}, {Disk: Disk{Path: "disk-1.qcow2"}}},
		Shares: []savedShare{{Dir: "/home/me"}, {Dir: "/\x1b[2J", Options: share.Options{ReadOnly: true}}},
	}
	disks := []string{`the disk "/disks/x.qcow2", and the backing files that it names`, `the disk "disk-1.qcow2", and the backing files that it names`}
	shares := []string{`the directory "/home/me", writable`, `the directory "/\x1b[2J", read-only`}
	nets := []string{"the resolver 127.0.0.1:6379, for the guest's names", "the network 192.168.0.0/16, ports 22 to 22", `the network interface "tap0"`}
	for _, c := range []struct {
		name   string
		saved  saved
		o      RestoreOptions
		copies bool
		want   []string
	}{
		{"a VM with nothing but a network", saved{Config: Config{Nets: Nets{User{}}}}, RestoreOptions{}, false, nil},
		{"all", everything, RestoreOptions{}, false, slices.Concat(disks, shares, nets, []string{
			"the port 0.0.0.0:80, for the guest's 8080", `the socket "/run/v", for the guest's vsock`, `"/home/me/a", for the guest's port a`, `"/run/b", for the guest's port b`})},
		{"a copy", everything, RestoreOptions{}, true, slices.Concat(disks, shares, nets)},
		{"others given", everything, RestoreOptions{Nets: Nets{User{}, User{}}, Publish: []gateway.Publication{{}}, Vsock: "/tmp/v", Ports: []Port{{Name: "a"}, {Name: "b"}}}, false,
			slices.Concat(disks, shares)},
	} {
		if got := c.saved.opens(&c.o, c.copies); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
