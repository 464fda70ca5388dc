package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
	"vmm/network/gateway"
	"vmm/tests/hosttools"
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

// works are what is measured.
var works = []string{"upload", "download", "small packets"}

// peer is somebody's user-mode network.
type peer struct {
	name  string
	start func(t *testing.T) wire
}

// startOurs makes a gateway behind a virtio-net device. As in vmm, the guest has a
// place of its own in Go's scheduler.
func startOurs(t *testing.T) wire {
	t.Helper()
	places := runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	t.Cleanup(func() { runtime.GOMAXPROCS(places) })
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
func measure(t *testing.T, w wire, work string) (float64, error) {
	t.Helper()
	p, err := newPlayer(w)
	if err != nil {
		return 0, err
	}
	if work == "small packets" {
		c, port, err := udpCounter()
		if err != nil {
			return 0, err
		}
		defer c.Close()
		p.flood(port, netRound/2) // fills the socket's buffer
		before, err := arrived(port)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		p.flood(port, netRound)
		after, err := arrived(port)
		if err != nil {
			return 0, err
		}
		return (after - before) / time.Since(start).Seconds() / 1e3, nil
	}
	l, port, err := tcpServer(work == "download")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	c, err := p.dial(port)
	if err != nil {
		return 0, err
	}
	defer c.reset()
	do := c.upload
	if work == "download" {
		do = c.download
	}
	if _, err := do(netRound / 4); err != nil { // windows grow
		return 0, err
	}
	n, err := do(netRound)
	if err != nil {
		return 0, err
	}
	return n * 8 / 1e9, nil
}

// measureOurs measures vmm, and how many allocations this whole process made.
func measureOurs(t *testing.T, work string) (float64, uint64, error) {
	t.Helper()
	var before, after runtime.MemStats
	w := startOurs(t)
	runtime.ReadMemStats(&before)
	r, err := measure(t, w, work)
	runtime.ReadMemStats(&after)
	return r, after.Mallocs - before.Mallocs, err
}

// TestCompareNet drives vmm's gateway through its virtio-net device, and QEMU's
// user network (libslirp) and passt through QEMU's socket framing, with the
// same small TCP and UDP.
func TestCompareNet(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	for _, work := range works {
		for _, p := range []peer{{"passt", startPasst}, {"libslirp", startSlirp}} {
			t.Run(work+", "+p.name, func(t *testing.T) {
				var ours, theirs []float64
				for range netRounds {
					n, mallocs, err := measureOurs(t, work)
					if err != nil {
						t.Fatal(err)
					}
					if per := float64(mallocs) / (n * 1e3 * netRound.Seconds()); work == "small packets" && per > 0.01 {
						t.Errorf("%.3f allocations a packet", per)
					}
					ours = append(ours, n)
					if n, err = measure(t, p.start(t), work); err != nil {
						n, err = measure(t, p.start(t), work) // passt stalls at times
					}
					if err != nil {
						t.Fatal(err)
					}
					theirs = append(theirs, n)
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

// TestCompareIperf runs iperf3 in a guest and on the host, against a server on the
// host. It has no goal, for it depends on how fast the host runs guest kernel
// mode.
func TestCompareIperf(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is not installed: apt-get install iperf3")
	}
	binary := buildVMM(t)
	server := exec.Command("iperf3", "-s", "-B", "127.0.0.1", "-p", "5209")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	defer server.Process.Kill()
	tools, err := hosttools.Archive("iperf3")
	if err != nil {
		t.Fatal(err)
	}
	for _, direction := range []struct{ name, flag string }{{"upload", ""}, {"download", "-R"}} {
		args := "-p 5209 -t 4 -J " + direction.flag + " -c "
		script, err := guestimages.Archive(cpio.StaticFile("etc/rc.local", "#!/bin/sh\nuntil ip route | grep -q default; do sleep 0.1; done\n"+
			hosttools.Loader+" --library-path "+hosttools.Libraries+" /host/bin/iperf3 "+args+"10.0.2.2\npoweroff\nsleep 60\n", 0o755))
		if err != nil {
			t.Fatal(err)
		}
		initrd := filepath.Join(t.TempDir(), "iperf.cpio")
		if err := os.WriteFile(initrd, append(tools, script...), 0o644); err != nil {
			t.Fatal(err)
		}
		var guest, host []float64
		for range 3 {
			out, err := exec.Command(binary, "run", "-m", "512M", "-c", "2", "--timeout", "2m", "--initrd", initrd, "--net", "user,allow=host:5209").Output()
			guest = append(guest, iperfGbits(t, string(out), err))
			out, err = exec.Command("iperf3", strings.Fields(args+"127.0.0.1")...).Output()
			host = append(host, iperfGbits(t, string(out), err))
		}
		ratio(t, "iperf3 "+direction.name+" in the guest, by the host's", guest, host, "Gbit/s")
	}
}

// iperfGbits reads what was received from iperf3's JSON, which may have other
// lines around it.
func iperfGbits(t *testing.T, out string, err error) float64 {
	t.Helper()
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	start := strings.Index(out, "{")
	if start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&result) != nil || result.End.Received.Rate == 0 {
		t.Fatalf("no result of iperf3's: %v\n%s", err, out)
	}
	return result.End.Received.Rate / 1e9
}

// TestNetOurs measures vmm alone, for profiles.
func TestNetOurs(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	for _, work := range works {
		for range 4 {
			r, mallocs, err := measureOurs(t, work)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("%s: %.4g, %d allocations\n", work, r, mallocs)
		}
	}
}
