package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"vmm/virtio/virtiotest"
	"vmm/virtio/vsock"
)

var le = binary.LittleEndian

// vsock's packets, as far as a guest needs them here (virtio 1.2, 5.10.6).
const (
	vsockHeader = 44
	vsockGuest  = 3
	vsockPort   = 5
	vsockBuffer = 64 << 10 // of one packet, as Linux has it
	vsockTotal  = 256 << 20
	vsockRounds = 7
)

// vsockPacket writes a header of the guest's.
func vsockPacket(b []byte, op uint16, size, credit, read uint32) {
	le.PutUint64(b[0:], vsockGuest)
	le.PutUint64(b[8:], vsock.HostCID)
	le.PutUint32(b[16:], 1000)
	le.PutUint32(b[20:], vsockPort)
	le.PutUint32(b[24:], size)
	le.PutUint16(b[28:], 1)
	le.PutUint16(b[30:], op)
	le.PutUint32(b[32:], 0)
	le.PutUint32(b[36:], credit)
	le.PutUint32(b[40:], read)
}

// vsockRate moves data one way through the device and a unix socket's bridge, and
// returns MiB a second.
func vsockRate(t *testing.T, toHost bool) float64 {
	path := filepath.Join(t.TempDir(), "v")
	l, err := net.Listen("unix", fmt.Sprintf("%s_%d", path, vsockPort))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dev, err := vsock.New(vsock.Options{CID: vsockGuest, Connect: vsock.ConnectUnix(path)})
	if err != nil {
		t.Fatal(err)
	}
	mem, err := virtiotest.NewMemory(32 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	g, err := virtiotest.Start(dev, mem, 128, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	done := make(chan time.Time, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if toHost {
			io.CopyN(io.Discard, c, vsockTotal)
		} else {
			buf := make([]byte, 1<<20)
			for sent := 0; sent < vsockTotal; sent += len(buf) {
				c.Write(buf)
			}
		}
		done <- time.Now()
		io.Copy(io.Discard, c)
	}()
	const slots = 64
	rx, tx := g.Queues[0], g.Queues[1]
	rxAt := virtiotest.QueueEnd(3)
	txAt := rxAt + slots*(vsockBuffer+4096)
	where := map[uint16]uint64{}
	for i := range uint64(slots) {
		at := rxAt + i*(vsockBuffer+4096)
		h, _ := rx.Add(virtiotest.Buffer{Addr: at, Len: vsockHeader, Write: true}, virtiotest.Buffer{Addr: at + 4096, Len: vsockBuffer, Write: true})
		where[h] = at
	}
	rx.Kick(0)
	send := func(slot uint64, op uint16, size, read uint32) {
		at := txAt + slot*(vsockBuffer+4096)
		vsockPacket(mem.Bytes[at:], op, size, 1<<20, read)
		chain := []virtiotest.Buffer{{Addr: at, Len: vsockHeader}}
		if size > 0 {
			chain = append(chain, virtiotest.Buffer{Addr: at + 4096, Len: size})
		}
		from := tx.Added()
		tx.Add(chain...)
		tx.Kick(from)
	}
	send(0, 1, 0, 0) // a request
	tx.Wait()
	var sent, credit, read uint32 = 0, 0, 0
	start := time.Now()
	free := []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	slotOf := map[int]uint64{}
	under := 0
	take := func() {
		head, n, ok := rx.Next()
		if !ok {
			head, n = rx.Wait()
		}
		at := where[head]
		delete(where, head)
		credit = le.Uint32(mem.Bytes[at+40:]) + le.Uint32(mem.Bytes[at+36:])
		read += n - vsockHeader
		from := rx.Added()
		h, _ := rx.Add(virtiotest.Buffer{Addr: at, Len: vsockHeader, Write: true}, virtiotest.Buffer{Addr: at + 4096, Len: vsockBuffer, Write: true})
		where[h] = at
		rx.Kick(from)
	}
	take() // the response
	if toHost {
		for sent < vsockTotal {
			for credit-sent < vsockBuffer {
				take()
			}
			if len(free) == 0 {
				tx.Wait()
				under--
				free = append(free, slotOf[0])
				for i := range under {
					slotOf[i] = slotOf[i+1]
				}
			}
			s := free[0]
			free = free[1:]
			slotOf[under] = s
			under++
			send(s, 5, vsockBuffer, 0)
			sent += vsockBuffer
		}
		end := <-done
		return vsockTotal / 1048576 / end.Sub(start).Seconds()
	}
	told := uint32(0)
	for read < vsockTotal {
		take()
		if read-told >= 512<<10 {
			send(0, 6, 0, read) // a credit update
			tx.Wait()
			told = read
		}
	}
	return vsockTotal / 1048576 / time.Since(start).Seconds()
}

// socketRate moves the same through a unix socket alone, by two sides that copy as
// the bridge does.
func socketRate(t *testing.T) float64 {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, vsockBuffer)
		for sent := 0; sent < vsockTotal; sent += len(buf) {
			c.Write(buf)
		}
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, vsockBuffer))
	return float64(n) / 1048576 / time.Since(start).Seconds()
}

// TestCompareVsock drives the socket device without a VM, beside a unix socket of
// the host: no other VMM's can be driven like this.
func TestCompareVsock(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	for _, way := range []struct {
		name   string
		toHost bool
	}{{"vsock: guest to host / unix socket", true}, {"vsock: host to guest / unix socket", false}} {
		var a, b []float64
		for range vsockRounds {
			a, b = append(a, vsockRate(t, way.toHost)), append(b, socketRate(t))
		}
		ratio(t, way.name, a, b, "MiB/s")
	}
}

// TestCompareCommands measures what a command in a VM costs beside the command: from
// main to the first KVM_RUN, a command in a VM that runs, and from a command's last
// word to our end. The host's own fork and exec stands beside.
func TestCompareCommands(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("no /dev/kvm on this machine")
	}
	dir, err := os.MkdirTemp("", "vmm-b-") // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	vmm := buildVMM(t)
	var setup, end []float64
	for range 5 {
		c := exec.Command(vmm, "run", "-v", "--", "echo", "last word")
		var errs strings.Builder
		c.Stderr = &errs
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "last word\n" {
			t.Fatalf("%q, %v\n%s", line, errors.Join(err, c.Wait()), errs.String())
		}
		said := time.Now()
		c.Wait()
		end = append(end, time.Since(said).Seconds()*1e3)
		_, rest, _ := strings.Cut(errs.String(), "set up in ")
		text, _, _ := strings.Cut(rest, ",")
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%v\n%s", err, errs.String())
		}
		setup = append(setup, d.Seconds()*1e3)
	}
	fmt.Printf("%-34s %.0f ms\n", "vmm run -- true: main to KVM_RUN", middle(setup))
	fmt.Printf("%-34s %.0f ms\n", "vmm run: last word to exit", middle(end))
	if out, err := exec.Command(vmm, "run", "-d", "--name", "b").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer exec.Command(vmm, "rm", "-f", "b").Run()
	timed(t, vmm, "exec", "b", "true")
	var a, b []float64
	for range 15 {
		a = append(a, timed(t, vmm, "exec", "b", "true").Seconds()*1e3)
		b = append(b, timed(t, vmm, "version").Seconds()*1e3)
	}
	ratio(t, "vmm exec VM true / vmm version", a, b, "ms")
}

// middle is the median.
func middle(v []float64) float64 {
	sort.Float64s(v)
	return v[len(v)/2]
}
