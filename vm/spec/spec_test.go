package spec

import (
	"net/netip"
	"reflect"
	"testing"

	"vmm/network/gateway"
	"vmm/vm"
)

// TestNet reads networks, right and wrong.
func TestNet(t *testing.T) {
	got, err := Net("user,mac=52:54:00:12:34:56,mtu=9000,queues=2,bps=1M,pps=100,allow=host:80,restrict=on,dns=192.0.2.1,dns=[fd00::1]:5353,subnet=10.1.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	n, ok := got.(vm.User)
	if c := n.NIC; !ok || c.MAC.String() != "52:54:00:12:34:56" || c.MTU != 9000 || c.Queues != 2 || c.BytesPerSecond != 1<<20 || c.PacketsPerSecond != 100 {
		t.Errorf("%+v", n)
	}
	if g := n.Gateway; len(g.Policy.Rules) != 2 || !g.Policy.Restrict || !g.Policy.NoNames || len(g.DNS) != 2 || g.DNS[0].Port() != 53 || g.Subnet.Bits() != 16 {
		t.Errorf("%+v", n)
	}
	for s, want := range map[string]vm.Net{
		"user,allow=dns,restrict":             vm.User{Gateway: vm.Gateway{Policy: policy(true, false)}},
		"user,restrict":                       vm.User{Gateway: vm.Gateway{Policy: policy(true, true)}},
		"stream,path=/a,,b,server=off":        vm.Stream{Path: "/a,b"},
		"stream,path=/a,server":               vm.Stream{Path: "/a", Server: true},
		"switch,name=lab,gateway":             vm.Switch{Name: "lab", Gateway: &vm.Gateway{}},
		"switch,name=lab,gateway=off":         vm.Switch{Name: "lab"},
		"tap,ifname=t0,queues=2":              vm.Tap{NIC: vm.NIC{Queues: 2}, Interface: "t0"},
		"dgram,local=a,remote=b":              vm.Datagram{Local: "a", Remote: "b"},
		"none":                                vm.None{},
		"switch,name=lab,address=10.9.0.2/24": vm.Switch{NIC: vm.NIC{Address: netip.MustParsePrefix("10.9.0.2/24")}, Name: "lab"},
	} {
		if n, err := Net(s); err != nil || !reflect.DeepEqual(n, want) {
			t.Errorf("%q: %+v, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "x", "user,x=1", "tap,name=x", "user,mtu=x", "user,mtu=0", "user,queues=0", "user,queues=99", "user,bps=x", "user,pps=-1",
		"switch,name=a/b", "switch,name=", "dgram,local=a", "stream", "user,dns=x", "user,subnet=fd00::/64", "user,restrict=maybe", "none,allow=host", "user,address=10.0.2.9", "user,address=fd00::1/64", "user,mac=01:00:5e:00:00:01"} {
		if n, err := Net(s); err == nil {
			t.Errorf("%q: %+v", s, n)
		}
	}
}

func policy(restrict, noNames bool) gateway.Policy {
	return gateway.Policy{Restrict: restrict, NoNames: noNames}
}

// TestOrder keeps rules in the order in which they are written.
func TestOrder(t *testing.T) {
	n, err := Net("user,deny=10.0.0.1,allow=10.0.0.0/8,deny=0.0.0.0/0")
	if err != nil {
		t.Fatal(err)
	}
	var allows []bool
	for _, r := range n.(vm.User).Policy.Rules {
		allows = append(allows, r.Allow)
	}
	if !reflect.DeepEqual(allows, []bool{false, true, false}) {
		t.Errorf("the rules allow %v", allows)
	}
}

func TestParts(t *testing.T) {
	disk, err := Disk("file=a,,b.qcow2,ro,format=qcow2,snapshot=off,serial=x,cache=none,iops=10,bps=2M,queues=3,backing=any")
	if want := (vm.Disk{Path: "a,b.qcow2", ReadOnly: true, Format: "qcow2", Serial: "x", Cache: "none", IOPS: 10, BytesPerSecond: 2 << 20, Queues: 3, AnyBacking: true}); err != nil || disk != want {
		t.Errorf("%+v, %v", disk, err)
	}
	for _, s := range []string{"", "file=", "a,x", "a,ro=maybe", "a,format=vmdk", "a,cache=x", "a,iops=0", "a,bps=x", "a,queues=1000", "a,backing=none", "a,serial=0123456789012345678901"} {
		if d, err := Disk(s); err == nil {
			t.Errorf("%q: %+v", s, d)
		}
	}
	if s, err := Share("a:/b:ro"); err != nil || s != (vm.Share{Host: "a", Guest: "/b", ReadOnly: true}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, s := range []string{"", "a", "a:b", ":/b", "a:/b:rx", "a:/b:ro:x"} {
		if m, err := Share(s); err == nil {
			t.Errorf("%q: %+v", s, m)
		}
	}
	for s, want := range map[string]vm.Port{"a=none": {Name: "a"}, "a=unix:/x": {Name: "a", To: vm.Endpoint{Socket: "/x"}}, "a=b=c": {Name: "a", To: vm.Endpoint{File: "b=c"}}} {
		if p, err := Port(s); err != nil || p != want {
			t.Errorf("%q: %+v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "a", "a="} {
		if p, err := Port(s); err == nil {
			t.Errorf("%q: %+v", s, p)
		}
	}
}

// FuzzNet: what is read can be checked, and nothing panics.
func FuzzNet(f *testing.F) {
	f.Add("user,mac=52:54:00:12:34:56,allow=[fd00::]:1-2")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Net(s)
		if err == nil {
			if err := (&vm.Config{Nets: vm.Nets{n}}).Check(); err != nil {
				t.Errorf("%q is read, but wrong: %v", s, err)
			}
		}
		Disk(s)
	})
}

func TestPmem(t *testing.T) {
	for text, want := range map[string]vm.Pmem{
		"a": {Path: "a"}, "a,ro": {Path: "a", ReadOnly: true}, "file=a,,b,ro=off": {Path: "a,b"}, "a=b,readonly=on": {Path: "a=b", ReadOnly: true},
	} {
		if got, err := Pmem(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "file=", ",ro", "a,size=1", "a,ro=maybe", "a,file=b"} {
		if got, err := Pmem(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
