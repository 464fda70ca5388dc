package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setup makes a restored guest fit for its new life.
func (s *Server) setup(c *Setup) error {
	errs := []error{setClock(c.Now), addEntropy(c.Entropy)}
	if c.Hostname != "" {
		errs = append(errs, setHostname(c.Hostname))
	}
	if c.MachineID != "" {
		errs = append(errs, rewrite("/etc/machine-id", c.MachineID+"\n"))
	}
	for name, mac := range c.MACs {
		if err := setMAC(name, mac); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", name, err))
		}
	}
	if s.Setup != nil {
		errs = append(errs, s.Setup(c))
	}
	return errors.Join(errs...)
}

// Requests of <linux/random.h>.
const (
	rndAddEntropy = 0x40085203 // RNDADDENTROPY
	rndReseedCRNG = 0x5207     // RNDRESEEDCRNG
)

// addEntropy mixes randomness in and has the kernel begin anew with it.
func addEntropy(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: bits, bytes, and those.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(b)))
	info = append(binary.NativeEndian.AppendUint32(info, uint32(len(b))), b...)
	for _, request := range []uintptr{rndAddEntropy, rndReseedCRNG} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
			return fmt.Errorf("/dev/urandom: %w", errno)
		}
	}
	return nil
}

// setHostname gives the guest a name, and its files too, as far as it has them.
func setHostname(name string) error {
	before, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	return errors.Join(rewrite("/etc/hostname", name+"\n"), renameHost("/etc/hosts", before, name))
}

// HostsLine is what a guest's /etc/hosts says of itself.
func HostsLine(name string) string { return "127.0.0.1 localhost " + name + "\n" }

// renameHost gives the guest its name in a file that has HostsLine of another.
func renameHost(path, before, name string) error {
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), HostsLine(before)) {
		return nil // the file is the root's own
	}
	return rewrite(path, strings.Replace(string(b), HostsLine(before), HostsLine(name), 1))
}

// rewrite gives a file that is there another content.
func rewrite(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// setMAC changes an interface's address.
func setMAC(name, mac string) error {
	addr, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct ifreq: the name, then a struct sockaddr.
	var r [40]byte
	copy(r[:unix.IFNAMSIZ-1], name)
	binary.NativeEndian.PutUint16(r[unix.IFNAMSIZ:], unix.ARPHRD_ETHER)
	copy(r[unix.IFNAMSIZ+2:], addr)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&r[0]))); errno != 0 {
		return errno
	}
	return nil
}
