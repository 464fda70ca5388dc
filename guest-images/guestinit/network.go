package guestinit

import (
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DHCPScript is where the initial RAM disk has the script that udhcpc calls.
const DHCPScript = "/etc/udhcpc/default.script"

// startNetwork turns the loopback interface on, and has udhcpc ask for an
// address on all others, and keep it. It does not wait.
func startNetwork() {
	up("lo")
	hostname, _ := os.Hostname()
	interfaces, _ := filepath.Glob("/sys/class/net/eth*")
	for _, path := range interfaces {
		name := filepath.Base(path)
		up(name)
		c := exec.Command("/bin/udhcpc", "-i", name, "-x", "hostname:"+hostname, "-f", "-t", "10", "-T", "1", "-A", "10", "-s", DHCPScript)
		if err := c.Start(); err != nil {
			warn("udhcpc: %v", err)
			return
		}
		go c.Wait()
	}
}

// up turns an interface on.
func up(name string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return // a kernel without networks
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r)
	}
	if err == nil {
		r.SetUint16(r.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	}
	if err != nil && !os.IsNotExist(err) {
		warn("interface %s: %v", name, err)
	}
}
