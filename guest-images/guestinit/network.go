package guestinit

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vmm/network/iface"
)

// DHCPScript is where the initial RAM disk has the script that udhcpc calls.
const DHCPScript = "/etc/udhcpc/default.script"

// ethernets returns the paths of the interfaces that can ask for an address.
func ethernets() []string {
	paths, _ := filepath.Glob("/sys/class/net/eth*")
	return paths
}

// fixed are the interfaces that have an address of the Config's.
var fixed map[string]netip.Prefix

// startNetwork turns the loopback interface on, and has udhcpc ask for an
// address on all others that are given none, and keep it. It does not wait.
func startNetwork(addresses map[string]netip.Prefix) {
	fixed = addresses
	up("lo")
	for _, path := range ethernets() {
		name := filepath.Base(path)
		up(name)
		if a, ok := fixed[name]; ok {
			if err := iface.SetAddress(name, a); err != nil {
				warn("interface %s: the address %v: %v", name, a, err)
			}
		}
	}
	askDHCP()
}

// dhcp are the clients that run.
var dhcp []*exec.Cmd

// askDHCP begins to ask for addresses, anew if it did before: the client takes its
// hardware address and hostname only once.
func askDHCP() {
	for _, c := range dhcp {
		c.Process.Kill()
	}
	dhcp = nil
	hostname, _ := os.Hostname()
	for _, path := range ethernets() {
		name := filepath.Base(path)
		if _, ok := fixed[name]; ok {
			continue
		}
		c := exec.Command("/bin/udhcpc", "-i", name, "-x", "hostname:"+hostname, "-f", "-t", "10", "-T", "1", "-A", "10", "-s", DHCPScript)
		inOldRoot(c)
		if err := reaper.Start(c); err != nil {
			warn("udhcpc: %v", err)
			return
		}
		dhcp = append(dhcp, c)
		go c.Wait() // it stays in the reaper's care until the guest ends
	}
}

// renewDHCP has the clients ask again, with the addresses that they have.
func renewDHCP() {
	for _, c := range dhcp {
		c.Process.Signal(unix.SIGUSR1) // see udhcpc's help
	}
}

// networkPatience is how long a network may take. One that does not come does not
// keep the guest from its work.
const networkPatience = 5 * time.Second

// waitNetwork waits until the DHCP script has written the name servers, which it
// does last. Without an interface there is nothing to wait for.
func waitNetwork() {
	if len(ethernets()) == 0 {
		return
	}
	for end := time.Now().Add(networkPatience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if st, err := os.Stat("/etc/resolv.conf"); err == nil && st.Size() > 0 {
			return
		}
	}
}

// up turns an interface on; a kernel without networks has none to turn on.
func up(name string) {
	err := iface.Up(name)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.ENOSYS) && !os.IsNotExist(err) {
		warn("interface %s: %v", name, err)
	}
}
