package bench

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"vmm/network/gateway"
	"vmm/virtio/net"
	"vmm/virtio/virtiotest"
)

const (
	netRound  = 700 * time.Millisecond
	netRounds = 7
)

func readLines(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	return strings.Split(string(b), "\n"), err
}

// peer is somebody's user-mode network.
type peer struct {
	name  string
	start func(t *testing.T) wire
}

// startOurs makes a gateway behind a virtio-net device.
func startOurs(t *testing.T) wire {
	t.Helper()
	var policy gateway.Policy
	if err := policy.ParseRule(true, "host"); err != nil {
		t.Fatal(err)
	}
	gw, err := gateway.New(gateway.Config{Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := net.New(gw, net.Options{MAC: benchMAC})
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(netMemory)
	if err != nil {
		t.Fatal(err)
	}
	g, err := virtiotest.Start(dev, mem, netRing, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		mem.Close()
	})
	return newVirtioWire(g)
}

// startProcess starts a peer that listens on a socket.
func startProcess(t *testing.T, mtu int, command func(socket string) []string) wire {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "vmm-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o777) // passt gives root up
	socket := filepath.Join(dir, "socket")
	args := command(socket)
	c := exec.Command(args[0], args[1:]...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	w, err := dialWire(socket, mtu)
	if err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	return w
}

func startPasst(t *testing.T) wire {
	return startProcess(t, 65520, func(socket string) []string {
		return []string{"passt", "-f", "-q", "-4", "-s", socket, "-a", benchGuest.String(), "-n", "24", "-g", benchGateway.String(), "-t", "none", "-u", "none"}
	})
}

func startSlirp(t *testing.T) wire {
	return startProcess(t, 1500, func(socket string) []string {
		return []string{"qemu-system-x86_64", "-M", "none", "-nodefaults", "-nographic",
			"-netdev", "user,id=u", "-netdev", "hubport,id=a,hubid=0,netdev=u",
			"-netdev", "stream,id=s,server=on,addr.type=unix,addr.path=" + socket, "-netdev", "hubport,id=b,hubid=0,netdev=s"}
	})
}

// measure runs a round of work on a wire.
func measure(t *testing.T, w wire, work string) float64 {
	t.Helper()
	p, err := newPlayer(w)
	if err != nil {
		t.Fatal(err)
	}
	if work == "small packets" {
		c, port, err := udpCounter()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p.flood(port, netRound/2) // fills the socket's buffer
		before, err := arrived(port)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		p.flood(port, netRound)
		after, err := arrived(port)
		if err != nil {
			t.Fatal(err)
		}
		return (after - before) / time.Since(start).Seconds() / 1e3
	}
	l, port, err := tcpServer(work == "download")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := p.dial(port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.reset()
	do := c.upload
	if work == "download" {
		do = c.download
	}
	if _, err := do(netRound / 4); err != nil { // windows grow
		t.Fatal(err)
	}
	n, err := do(netRound)
	if err != nil {
		t.Fatal(err)
	}
	return n * 8 / 1e9
}

// TestCompareNet drives vmm's gateway through its virtio-net device, and QEMU's
// user network (libslirp) and passt through QEMU's socket framing, with the
// same small TCP and UDP.
func TestCompareNet(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	for _, work := range []string{"upload", "download", "small packets"} {
		for _, p := range []peer{{"passt", startPasst}, {"libslirp", startSlirp}} {
			t.Run(work+", "+p.name, func(t *testing.T) {
				var ours, theirs []float64
				for range netRounds {
					ours = append(ours, measure(t, startOurs(t), work))
					theirs = append(theirs, measure(t, p.start(t), work))
				}
				unit := "Gbit/s"
				if work == "small packets" {
					unit = "k/s"
				}
				ratio(t, fmt.Sprintf("net: %s, against %s", work, p.name), ours, theirs, unit)
			})
		}
	}
}

// TestNetOurs measures vmm alone, for profiles.
func TestNetOurs(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	for _, work := range strings.Split(cmp.Or(os.Getenv("WORK"), "upload,download,small packets"), ",") {
		for range 4 {
			var before, after runtime.MemStats
			w := startOurs(t)
			runtime.ReadMemStats(&before)
			r := measure(t, w, work)
			runtime.ReadMemStats(&after)
			fmt.Printf("%s: %.4g, %d allocations\n", work, r, after.Mallocs-before.Mallocs)
		}
	}
}
