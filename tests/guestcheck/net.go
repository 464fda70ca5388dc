package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// netChecks are made if net=1 is given, with http=PORT and http6=PORT of the
// host's loopback, mib=N to move, sum=SHA256 of what is downloaded, and mtu=N.
// They print what the test on the host is to do meanwhile.
var netChecks = []check{
	{"address", address},
	{"names", names},
	{"ping", ping},
	{"download", download},
	{"upload", upload},
	{"connections", connections},
	{"ipv6", ipv6},
	{"refused", refused},
	{"policy", policy},
	{"published", published},
	{"flap", flap},
	{"rebind", rebind},
}

const (
	router = "10.0.2.2"
	iface  = "eth0"
)

// eventually tries until there is no error, for a while.
func eventually(try func() error) error {
	var err error
	for range 300 {
		if err = try(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// address waits for what DHCP brings; with kernel=1, the kernel itself asked too.
func address(want map[string]string) error {
	if want["kernel"] != "" {
		pnp, err := os.ReadFile("/proc/net/pnp")
		if err != nil || !strings.Contains(string(pnp), "#PROTO: DHCP") || !strings.Contains(string(pnp), "nameserver 10.0.2.3") {
			return fmt.Errorf("the kernel's DHCP: %q, %v", pnp, err)
		}
	}
	return eventually(func() error {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		if err != nil {
			return err
		}
		if !strings.Contains(fmt.Sprint(addrs), "10.0.2.15/24") {
			return fmt.Errorf("addresses: %v", addrs)
		}
		if want["mtu"] != "" && fmt.Sprint(i.MTU) != want["mtu"] {
			return fmt.Errorf("MTU %d", i.MTU)
		}
		routes, err := os.ReadFile("/proc/net/route")
		if err == nil && !strings.Contains(string(routes), iface+"\t00000000\t0202000A") {
			err = fmt.Errorf("no default route:\n%s", routes)
		}
		return err
	})
}

// resolver asks the gateway, by one of UDP and TCP.
func resolver(network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "10.0.2.3:53")
	}}
}

// names asks for the gateway's own names and for one that the host's resolver
// knows.
func names(want map[string]string) error {
	if err := eventually(func() error {
		resolv, err := os.ReadFile("/etc/resolv.conf")
		if err != nil || !strings.Contains(string(resolv), "nameserver 10.0.2.3") || !strings.Contains(string(resolv), "vmm.internal") {
			return fmt.Errorf("resolv.conf: %q, %v", resolv, err)
		}
		return nil
	}); err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	for _, network := range []string{"udp", "tcp"} {
		for name, addr := range map[string]string{"host.vmm.internal.": router, hostname + ".vmm.internal.": "10.0.2.15", "big.example.org.": "192.0.2.7"} {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			addrs, err := resolver(network).LookupHost(ctx, name)
			cancel()
			if err != nil || !strings.Contains(strings.Join(addrs, " "), addr) {
				return fmt.Errorf("%s by %s: %v, %v", name, network, addrs, err)
			}
		}
	}
	if _, err := resolver("udp").LookupHost(context.Background(), "nobody.vmm.internal."); err == nil {
		return errors.New("nobody.vmm.internal has an address")
	}
	return nil
}

func ping(map[string]string) error {
	for _, args := range [][]string{{"-c", "2", router}, {"-c", "1", "-s", "3000", router}} {
		if out, err := exec.Command("ping", append([]string{"-W", "10"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ping %v: %w: %s", args, err, out)
		}
	}
	return nil
}

// download gets a file by busybox's wget and compares its checksum.
func download(want map[string]string) error {
	start := time.Now()
	c := exec.Command("wget", "-q", "-O", "-", fmt.Sprintf("http://host.vmm.internal:%s/", want["http"]))
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, out)
	if err := errors.Join(err, c.Wait()); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != want["sum"] {
		return fmt.Errorf("%d bytes with checksum %s", n, got)
	}
	fmt.Printf("downloaded %d MiB in %v\n", n>>20, time.Since(start).Round(time.Millisecond))
	return nil
}

// upload sends as much, and wants to be told the checksum.
func upload(want map[string]string) error {
	start := time.Now()
	sum := sha256.New()
	size := number(want, "mib") << 20
	body := io.TeeReader(io.LimitReader(zeros{}, size), sum)
	r, err := http.Post(fmt.Sprintf("http://%s:%s/", router, want["http"]), "", body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	got, err := io.ReadAll(r.Body)
	if err == nil && string(got) != fmt.Sprintf("%x", sum.Sum(nil)) {
		err = fmt.Errorf("the host got %s", got)
	}
	fmt.Printf("uploaded %d MiB in %v\n", size>>20, time.Since(start).Round(time.Millisecond))
	return err
}

// zeros is endless.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// connections has 200 at once.
func connections(want map[string]string) error {
	const many = 200
	var group sync.WaitGroup
	errs := make([]error, many)
	open := make([]net.Conn, many)
	for i := range many {
		group.Go(func() {
			open[i], errs[i] = net.Dial("tcp", net.JoinHostPort(router, want["echo"]))
		})
	}
	group.Wait()
	for i, c := range open {
		if c == nil {
			continue
		}
		text := []byte(fmt.Sprint("hello ", i))
		c.SetDeadline(time.Now().Add(time.Minute))
		c.Write(text)
		b := make([]byte, len(text))
		if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, text) {
			errs[i] = fmt.Errorf("connection %d: %q, %w", i, b, err)
		}
		c.Close()
	}
	return errors.Join(errs...)
}

// ipv6 waits for an address by SLAAC, and uses it.
func ipv6(want map[string]string) error {
	return eventually(func() error {
		r, err := http.Get(fmt.Sprintf("http://[fd00:766d:6d::2]:%s/small", want["http6"]))
		if err != nil {
			return err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil && string(b) != "small" {
			err = fmt.Errorf("got %q", b)
		}
		return err
	})
}

// refused wants a port that is closed to be so at once, by TCP and UDP.
func refused(map[string]string) error {
	c, err := net.Dial("tcp", router+":9")
	if err == nil || !strings.Contains(err.Error(), "refused") {
		return fmt.Errorf("TCP: %v, %v", c, err)
	}
	u, err := net.Dial("udp", router+":9")
	if err != nil {
		return err
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(30 * time.Second))
	u.Write([]byte("x"))
	if _, err = u.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "refused") {
		return fmt.Errorf("UDP: %v", err)
	}
	return nil
}

// policy wants not to get where it may not: to a port of the host's loopback
// that was denied, and to a cloud's metadata.
func policy(want map[string]string) error {
	for _, to := range []string{net.JoinHostPort(router, want["denied"]), "169.254.169.254:80"} {
		if c, err := net.DialTimeout("tcp", to, 30*time.Second); err == nil {
			c.Close()
			return errors.New(to + " was reached")
		}
	}
	return nil
}

// published serves a TCP and a UDP port until the host has used both.
func published(map[string]string) error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", ":80")
	if err != nil {
		return err
	}
	defer u.Close()
	fmt.Println("PUBLISHED NOW")
	done := make(chan error, 2)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		done <- err
	}()
	go func() {
		b := make([]byte, 2000)
		n, from, err := u.ReadFrom(b)
		if err == nil {
			_, err = u.WriteTo(b[:n], from)
		}
		done <- err
	}()
	for range 2 {
		select {
		case err = <-done:
		case <-time.After(3 * time.Minute):
			err = errors.New("the host did not come")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// carrier is the state of the cable.
func carrier() string {
	b, _ := os.ReadFile("/sys/class/net/" + iface + "/carrier")
	return strings.TrimSpace(string(b))
}

// flap has the cable pulled out and plugged in again.
func flap(want map[string]string) error {
	for _, s := range []string{"0", "1"} {
		fmt.Println("CARRIER", s)
		if err := eventually(func() error {
			if c := carrier(); c != s {
				return fmt.Errorf("carrier is %q, want %s", c, s)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return reach(want)
}

// reach gets something small.
func reach(want map[string]string) error {
	return eventually(func() error {
		c := http.Client{Timeout: 10 * time.Second}
		r, err := c.Get(fmt.Sprintf("http://%s:%s/small", router, want["http"]))
		if err == nil {
			r.Body.Close()
		}
		return err
	})
}

// rebind has the driver let the device go and take it again, as a reboot does,
// and asks busybox's udhcpc for the address.
func rebind(want map[string]string) error {
	const driver = "/sys/bus/virtio/drivers/virtio_net/"
	dev, err := os.Readlink("/sys/class/net/" + iface + "/device")
	if err != nil {
		return err
	}
	dev = dev[strings.LastIndexByte(dev, '/')+1:]
	for _, f := range []string{"unbind", "bind"} {
		if err := os.WriteFile(driver+f, []byte(dev), 0); err != nil {
			return err
		}
	}
	if out, err := exec.Command("ip", "link", "set", iface, "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set up: %w: %s", err, out)
	}
	if out, err := exec.Command("udhcpc", "-i", iface, "-n", "-q", "-f", "-s", "/etc/udhcpc/default.script").CombinedOutput(); err != nil {
		return fmt.Errorf("udhcpc: %w: %s", err, out)
	}
	return reach(want)
}
