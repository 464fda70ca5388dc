package tests

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// netMiB is how much a guest loads each way.
const netMiB = 100

// hostServers are what a guest finds on the host's loopback.
type hostServers struct {
	http, http6, echo, denied string // ports
	dns                       string // address
	sum                       string // of the large file
}

func startServers(t *testing.T) *hostServers {
	t.Helper()
	data := make([]byte, netMiB<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	s := &hostServers{sum: fmt.Sprintf("%x", sha256.Sum256(data))}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /small", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "small") })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { w.Write(data) })
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%x", sum.Sum(nil))
	})
	listen := func(address string) (net.Listener, string) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	}
	l, port := listen("127.0.0.1:0")
	s.http = port
	go http.Serve(l, mux)
	l, s.http6 = listen("[::1]:0")
	go http.Serve(l, mux)
	l, s.echo = listen("127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	_, s.denied = listen("127.0.0.1:0")
	s.dns = startDNS(t)
	return s
}

// startDNS serves big.example.org, with an answer that is too large for UDP.
func startDNS(t *testing.T) string {
	t.Helper()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "big.example.org." && q.Question[0].Qtype == dns.TypeA {
			for i := range 120 {
				a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(192, 0, 2, byte(i+7))})
			}
		}
		if w.LocalAddr().Network() == "udp" {
			a.Truncate(dns.MinMsgSize)
		}
		w.WriteMsg(a)
	})
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: p, Handler: h}, {Listener: l, Handler: h}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return p.LocalAddr().String()
}

// TestNet gives guests the default network, by each transport, and has them use
// it as guests do.
func TestNet(t *testing.T) {
	needKVM(t)
	s := startServers(t)
	for _, c := range []struct {
		name, transport, cpus, extra, checks string
		upload                               int // MiB
	}{
		{"pci", "pci", "2", "", "", netMiB},
		{"mmio", "mmio", "1", ",mtu=9000", "mtu=9000 kernel=1 skip=rebind", netMiB / 5}, // slow to send with one CPU
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			name := "net-" + c.name
			capture := filepath.Join(dir, "net.pcapng")
			checks := fmt.Sprintf("net=1 http=%s http6=%s echo=%s denied=%s sum=%s mib=%d %s", s.http, s.http6, s.echo, s.denied, s.sum, c.upload, c.checks)
			args := []string{"run", "--name", name, "--virtio", c.transport, "-c", c.cpus, "-m", "512M", "--timeout", bootLimit, "-v",
				"--net", fmt.Sprintf("user,deny=host:%s,allow=host,dns=%s%s", s.denied, s.dns, c.extra),
				"--publish", "127.0.0.1:0:80", "--initrd", rcInitrd(t, checkScript(checks))}
			if c.transport == "mmio" {
				args = append(args, "--pcap", capture, "--append", "ip=dhcp")
			}
			g := startGuest(t, args...)
			if g.until("PUBLISHED NOW") {
				usePublished(t, name)
			}
			if g.until("CARRIER 0") {
				must(t, vmmPath, "net", "down", name)
			}
			if g.until("CARRIER 1") {
				must(t, vmmPath, "net", "up", name)
				if out := must(t, vmmPath, "net", "ls", name); !strings.Contains(out, "user") || !strings.Contains(out, "up") {
					t.Errorf("vmm net ls:\n%s", out)
				}
			}
			g.until("")
			reportChecks(t, g.out.String())
			for _, line := range strings.Split(g.out.String(), "\n") {
				if strings.Contains(line, "loaded") || strings.HasPrefix(line, "vmm: eth0") {
					t.Log(line)
				}
			}
			if c.transport == "mmio" {
				checkCapture(t, capture)
			}
		})
	}
}

// TestHostNames: the guest has the host's search domains and ndots, also when they change,
// and a port that is free.
func TestHostNames(t *testing.T) {
	needKVM(t)
	if os.Getuid() != 0 {
		t.Skip("root gives itself another resolv.conf")
	}
	runtimeDirFor(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) { os.WriteFile(resolv, []byte(text), 0o644) }
	write("nameserver 192.0.2.1\nsearch before.example\n")
	c := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv,
		vmmPath, "run", "--name", "names", "--timeout", bootLimit, "-p", "80", "-p", "127.0.0.1::7000-7001", "--", "sh", "-c",
		"cat /etc/resolv.conf; until grep -q after /etc/resolv.conf; do sleep .2; done; cat /etc/resolv.conf")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for s := bufio.NewScanner(out); s.Scan(); {
		if lines = append(lines, s.Text()); len(lines) == 2 {
			if ports := must(t, vmmPath, "port", "ls", "names"); strings.Count(ports, "\n") != 4 {
				t.Errorf("ports: %s", ports)
			}
			write("nameserver 192.0.2.1\nsearch after.example\noptions ndots:5\n")
		}
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	want := []string{"search vmm.internal before.example", "nameserver 10.0.2.3", "search vmm.internal after.example", "options ndots:5", "nameserver 10.0.2.3"}
	if !slices.Equal(lines, want) {
		t.Errorf("resolv.conf in the guest: %q, want %q", lines, want)
	}
}

// TestSwitch has two guests on a switch, one with the gateway: by names, ping and
// a transfer each way, and a third one refused for its name. One has a second
// network device.
func TestSwitch(t *testing.T) {
	needKVM(t)
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	script := func(peer, then string) string {
		return "until ip route | grep -q default; do sleep 0.1; done\n" +
			"(while true; do nc -l -p 7 -e cat; done) &\n" +
			"n=0; until ping -c 1 -W 2 " + peer + ".vmm.internal; do n=$((n+1)); [ $n -gt 60 ] && break; sleep 0.5; done\n" +
			"dd if=/test/guestcheck of=/tmp/data bs=64k count=16 2>/dev/null\n" +
			"n=0; until [ \"$(nc " + peer + " 7 </tmp/data | md5sum)\" = \"$(md5sum </tmp/data)\" ]; do n=$((n+1)); [ $n -gt 20 ] && break; sleep 1; done\n" +
			"[ $n -le 20 ] && echo SAME AS SENT TO " + peer + "\n" + then
	}
	start := func(name, text string, more ...string) *guest {
		return startGuest(t, append([]string{"run", "--name", name, "-m", "256M", "--timeout", bootLimit, "--net", "switch,name=lab,gateway=on",
			"--initrd", rcInitrd(t, text)}, more...)...)
	}
	a := start("alice", script("bob", "sleep 300\n"))
	b := start("bob", script("alice", "until ip addr show eth1 | grep 10.9.0.15/16; do sleep 0.2; done; echo BOB IS DONE; sleep 300\n"),
		"--net", "user,subnet=10.9.0.0/16")
	if !a.until("SAME AS SENT TO bob") {
		t.Fatalf("alice:\n%s", a.out.String())
	}
	if !b.until("BOB IS DONE") || !strings.Contains(b.out.String(), "SAME AS SENT TO alice") {
		t.Fatalf("bob:\n%s", b.out.String())
	}
	if out, status := vmm(t, "run", "--name", "bob", "--net", "switch,name=lab"); status != 125 || !strings.Contains(out, "give this one another --name") {
		t.Errorf("a second bob: status %d\n%s", status, out)
	}
	for _, g := range []*guest{a, b} {
		g.cmd.Process.Signal(unix.SIGTERM)
		g.until("")
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "vmm", "*", "vm.json")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "vmm", "switch", "lab", "*.sock")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestTap reaches a guest with a tap interface from a network namespace, where
// vmm makes it.
func TestTap(t *testing.T) {
	needKVM(t)
	needTools(t, "ip", "ping", "curl")
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	ns := fmt.Sprintf("vmm-e2e-%d", os.Getpid())
	must(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	text := "ip addr add 192.0.2.2/24 dev eth0\n" +
		"dd if=/test/guestcheck of=/tmp/data bs=64k count=16 2>/dev/null; md5sum </tmp/data\n" +
		"(while true; do (printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'; cat /tmp/data) | nc -l -p 80; done) &\n" +
		"until ping -c 1 -W 1 192.0.2.1; do sleep 0.2; done; echo TAP IS READY; sleep 300\n"
	g := startCommand(t, "ip", "netns", "exec", ns, vmmPath, "run", "-c", "2", "-m", "256M", "--timeout", bootLimit,
		"--net", "tap,ifname=tap0", "--initrd", rcInitrd(t, text))
	for range 600 {
		if exec.Command("ip", "-n", ns, "link", "show", "tap0").Run() == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	must(t, "ip", "-n", ns, "addr", "add", "192.0.2.1/24", "dev", "tap0")
	if !g.until("TAP IS READY") {
		t.Fatalf("the guest:\n%s", g.out.String())
	}
	must(t, "ip", "netns", "exec", ns, "ping", "-c", "2", "-W", "20", "192.0.2.2")
	out := must(t, "ip", "netns", "exec", ns, "sh", "-c", "curl -s -m 60 http://192.0.2.2/ | md5sum")
	if !strings.Contains(g.out.String(), strings.Fields(out)[0]) {
		t.Errorf("the host got %s; the guest:\n%s", out, g.out.String())
	}
	g.cmd.Process.Signal(unix.SIGTERM)
	g.until("")
}

// TestBadNetworks wants one line and a status for what cannot be.
func TestBadNetworks(t *testing.T) {
	needKVM(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := fmt.Sprintf("%s:80", l.Addr())
	refusals := []refusal{
		{"--net cable", 2, "no such mode"},
		{"--net user,color=blue", 2, "color=blue"},
		{"--net user,mtu=1", 2, "between"},
		{"--net user,mac=1:2:3", 2, "no hardware address"},
		{"--net user,allow=nowhere", 2, "an address, a network"},
		{"--net user,subnet=10.0.0.0/30", 125, "8 to 24 bits"},
		{"--net switch", 2, "name=... is missing"},
		{"--net none --net user", 2, "goes with no other"},
		{"--net none --publish 8080:80", 2, "--publish needs a --net user"},
		{"--publish 80:", 2, "the guest's port is from 1 to 65535"},
		{"--publish " + taken, 125, "is in use on the host"},
		{"--publish 192.0.2.99:8080:80", 125, "has no address"},
		{"--net tap,ifname=a-name-that-is-too-long", 125, "at most 15 characters"},
		{"--net tap,ifname=lo", 125, "no tap interface"},
		{"--net stream,path=/nowhere/socket", 125, "/nowhere/socket: no such file"},
		{"--pcap /nowhere/file", 125, "/nowhere/file"},
	}
	for i := range refusals {
		refusals[i].args = "run --timeout 1s " + refusals[i].args
	}
	wantRefusals(t, append(refusals, refusal{"port ls nobody", 125, "no VM \"nobody\""}))
}

// usePublished reaches the guest by the ports of the host's that lead to it, one
// of them published just now.
func usePublished(t *testing.T, name string) {
	t.Helper()
	must(t, vmmPath, "port", "add", name, "127.0.0.1:0:80/udp")
	for _, line := range strings.Split(must(t, vmmPath, "port", "ls", name), "\n")[1:] {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		proto := f[2][strings.IndexByte(f[2], '/')+1:]
		echo(t, proto, f[1], "hello guest", "hello guest")
		must(t, vmmPath, "port", "rm", name, fmt.Sprintf("%s:80/%s", f[1], proto))
	}
	if out := must(t, vmmPath, "port", "ls", name); strings.Count(out, "\n") != 1 {
		t.Errorf("ports are left:\n%s", out)
	}
}

// checkCapture has Wireshark's own reader look at what was captured.
func checkCapture(t *testing.T, path string) {
	t.Helper()
	needTools(t, "tshark")
	const looked = 2000 // packets
	out := must(t, "tshark", "-r", path, "-T", "fields", "-e", "frame.protocols", "-e", "frame.interface_name", "-c", fmt.Sprint(looked))
	for _, want := range []string{"dhcp", "dns", "eth0 (user)"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the capture:\n%s", want, out)
		}
	}
	if out := must(t, "tshark", "-r", path, "-c", fmt.Sprint(looked), "-Y", "_ws.malformed and (arp or dhcp or dns or icmp or icmpv6)"); strings.Count(out, "\n") > 1 { // the first line may warn of root
		t.Errorf("malformed packets:\n%s", out)
	}
	if info, err := os.Stat(path); err != nil || info.Size() < netMiB<<20 {
		t.Errorf("the capture: %v, %v", info, err)
	}
}
