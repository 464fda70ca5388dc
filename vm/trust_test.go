package vm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vmm/machine"
	"vmm/machine/snapshot"
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

// TestRestoreForeign: what somebody has changed in a snapshot is not opened without a word,
// though its checksum fits.
func TestRestoreForeign(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	home, dir := t.TempDir(), filepath.Join(t.TempDir(), "saved")
	w, err := snapshot.Create(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := machine.NewMemory(machine.MinMemory)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	vm := saved{Version: savedVersion, Config: Config{Memory: machine.MinMemory}, Shares: []savedShare{{Tag: "share0", Dir: home + "/work"}}}
	if err := errors.Join(w.Memory(mem, snapshot.MemoryOptions{}), w.Commit("test", vm, &machine.State{Version: machine.StateVersion})); err != nil {
		t.Fatal(err)
	}
	restore := func(trust bool) error {
		v, err := Restore(dir, RestoreOptions{Trust: trust})
		if err == nil {
			err = v.Close()
		}
		return err
	}
	if err := restore(false); err != nil {
		t.Errorf("as it was saved: %v", err)
	}
	path := filepath.Join(dir, snapshot.ManifestFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := bytes.Cut(b, []byte{'\n'})
	text = bytes.Replace(text, []byte(home+"/work"), []byte(home), 1)
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s\n%x\n", text, sha256.Sum256(text)), 0o600); err != nil {
		t.Fatal(err)
	}
	var untrusted *UntrustedError
	if err := restore(false); !errors.As(err, &untrusted) || !slices.Equal(untrusted.Opens, []string{fmt.Sprintf("the directory %q, writable", home)}) {
		t.Errorf("with another directory: %v", err)
	}
	if err := restore(true); err != nil {
		t.Errorf("trusted: %v", err)
	}
}

// TestWarmForeign: what a snapshot for warm starts, which nobody has signed, says of disks is not opened.
func TestWarmForeign(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	v, err := New(Config{Boot: Boot{Kernel: file}, Nets: Nets{None{}}})
	if err != nil {
		t.Fatal(err)
	}
	v.from = &source{warm: true, vm: saved{CID: guestCID, Disks: []savedDisk{{Disk: Disk{Path: file, ReadOnly: true}, Size: st.Size(), Changed: st.ModTime().UnixNano()}}}}
	defer v.release()
	if _, err := v.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(v.disks.disks); n > 0 {
		t.Errorf("%d disks are open", n)
	}
}
