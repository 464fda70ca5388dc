package gateway

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmm/network/networktest"
	"vmm/network/tap"
)

// linuxGuest joins a gateway to a tap interface in a network namespace of its
// own: Linux's own stack is the guest. run executes a command there.
func linuxGuest(t *testing.T, cfg Config) (g *Gateway, run func(command string) (string, error)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip: make test installs iproute2")
	}
	name := fmt.Sprintf("vmm-test-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("ip netns add: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	link, err := tapIn(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range []string{"host"} {
		if err := cfg.Policy.ParseRule(true, rule); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Log = func(err error) { t.Log(err) }
	if g, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	networktest.Cross(link, g)
	t.Cleanup(func() {
		link.Close()
		g.Close()
	})
	run = func(command string) (string, error) {
		out, err := exec.Command("ip", "netns", "exec", name, "sh", "-c", command).CombinedOutput()
		return string(out), err
	}
	for _, c := range []string{"ip link set lo up", "ip addr add 10.0.2.15/24 dev tap0", "ip route add default via 10.0.2.2"} {
		if out, err := run(c); err != nil {
			t.Fatalf("%s: %v: %s", c, err, out)
		}
	}
	return g, run
}

// tapIn opens a tap interface in a network namespace.
func tapIn(name string) (*tap.Link, error) {
	type result struct {
		link *tap.Link
		err  error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with it
		ns, err := os.Open("/var/run/netns/" + name)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err != nil {
			c <- result{nil, err}
			return
		}
		l, err := tap.Open("tap0", 1)
		c <- result{l, err}
	}()
	r := <-c
	return r.link, r.err
}

// TestLinux has Linux's stack talk to the gateway: ping, errors, SLAAC, HTTP
// both ways with large segments, and an MTU of 9000.
func TestLinux(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprint("mtu=", mtu), func(t *testing.T) {
			_, run := linuxGuest(t, Config{MTU: mtu})
			// An address of the host's that is not its loopback, as others are.
			const elsewhere = "198.18.7.1"
			if out, err := exec.Command("ip", "addr", "add", elsewhere+"/32", "dev", "lo").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Cleanup(func() { exec.Command("ip", "addr", "del", elsewhere+"/32", "dev", "lo").Run() })
			if out, err := run(fmt.Sprintf("ip link set tap0 mtu %d", mtu)); err != nil {
				t.Fatal(out, err)
			}
			data := make([]byte, 8<<20)
			rand.NewChaCha8([32]byte{}).Read(data)
			got := make(chan [32]byte, 1)
			mux := http.NewServeMux()
			mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { w.Write(data) })
			mux.HandleFunc("PUT /", func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got <- sha256.Sum256(b)
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go http.Serve(l, mux)
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).Port
			for _, c := range []string{
				"ping -c 2 -W 5 -s 1400 10.0.2.2",
				"ping -c 1 -W 5 -s 20000 10.0.2.2",
				// SLAAC takes a second or two.
				"for i in $(seq 50); do ip -6 addr show tap0 | grep fd00:766d | grep -v tentative && break; sleep 0.2; done; ping -6 -c 1 -W 5 fd00:766d:6d::2",
				"ping -c 1 -W 5 " + elsewhere,
				"ping -c 1 -W 5 -s 5000 " + elsewhere,
				"! ping -c 1 -W 1 198.18.7.2",
				"! ping -c 1 -W 1 -s 5000 198.18.7.2",
			} {
				if out, err := run(c); err != nil {
					t.Errorf("%s: %v\n%s", c, err, out)
				}
			}
			out, err := run(fmt.Sprintf("curl -s -m 30 http://10.0.2.2:%d/ | sha256sum", port))
			if want := fmt.Sprintf("%x", sha256.Sum256(data)); err != nil || !strings.Contains(out, want) {
				t.Errorf("downloaded %s, %v; want %s", out, err, want)
			}
			file := t.TempDir() + "/data"
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := run(fmt.Sprintf("curl -s -m 30 -T %s http://10.0.2.2:%d/", file, port)); err != nil {
				t.Errorf("upload: %v\n%s", err, out)
			} else if sum := <-got; sum != sha256.Sum256(data) {
				t.Error("what was uploaded has changed")
			}
			if out, err := run("curl -s -m 20 http://10.0.2.2:9/"); err == nil || !strings.Contains(err.Error(), "7") {
				t.Errorf("a closed port: %v\n%s", err, out)
			}
		})
	}
}

// TestLinuxUDP sends datagrams of all sizes, in bursts, and wants errors told.
func TestLinuxUDP(t *testing.T) {
	_, run := linuxGuest(t, Config{})
	port := serveUDP(t, "127.0.0.1:0", bytes.ToUpper)
	script := `
import socket, sys, os
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect(("10.0.2.2", int(sys.argv[1])))
for n in (0, 1, 100, 1200, 1472, 1473, 9000, 30000):
    data = b"x" * n
    s.send(data)
    got = s.recv(65536)
    assert got == data.upper(), (n, len(got))
for n in range(100): # a burst, with sizes that change
    s.send(b"y" * (100 + n // 30))
lengths = [len(s.recv(2000)) for _ in range(100)]
assert lengths == [100 + n // 30 for n in range(100)], lengths
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
c.settimeout(10)
c.connect(("10.0.2.2", 9))
c.send(b"x")
try:
    c.recv(100)
    assert False, "an answer from a closed port"
except ConnectionRefusedError:
    pass
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
d.settimeout(10)
d.connect(("169.254.169.254", 80))
d.send(b"x")
try:
    d.recv(100)
    assert False, "an answer from where it may not go"
except OSError as e:
    assert not isinstance(e, TimeoutError), e
print("ok")
`
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3: make test installs it")
	}
	path := t.TempDir() + "/udp.py"
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if out, err := run(fmt.Sprintf("python3 %s %d", path, port)); err != nil || !strings.Contains(out, "ok") {
		t.Errorf("%v after %v\n%s", err, time.Since(start), out)
	}
}

// TestLinuxPathMTU has a path that takes less than the guest's network: the guest
// is told how much.
func TestLinuxPathMTU(t *testing.T) {
	_, run := linuxGuest(t, Config{})
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3: make test installs it")
	}
	const link = "vmm-test-mtu"
	for _, c := range []string{"link add " + link + " mtu 1000 type veth peer name " + link + "2", "addr add 198.18.8.1/24 dev " + link,
		"link set " + link + "2 up", "link set " + link + " up"} {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "del", link).Run() })
	script := `
import socket, time
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
s.connect(("198.18.8.2", 9))
for i in range(100):
    try:
        s.send(b"x" * 1400)
    except OSError:
        pass
    mtu = s.getsockopt(socket.IPPROTO_IP, IP_MTU)
    if mtu == 1000:
        print("ok")
        break
    time.sleep(0.1)
else:
    print("the path's MTU is still", mtu)
`
	path := t.TempDir() + "/mtu.py"
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run("python3 " + path); err != nil || !strings.Contains(out, "ok") {
		t.Errorf("%v\n%s", err, out)
	}
}
