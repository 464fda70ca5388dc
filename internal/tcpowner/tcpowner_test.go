package tcpowner

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000     7        0 1 1 0 100 0 0 10 0
   1: 0100007F:A000 0100007F:04D2 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0 20 4 30 10 -1
   2: 0100007F:04D2 0100007F:A000 01 00000000:00000000 00:00000000 00000000     8        0 3 1 0 20 4 30 10 -1
   3: 00000000000000000000000001000000:A000 00000000000000000000000001000000:04D2 01 00000000:00000000 00:00000000 00000000  1001        0 4
   4: 0000000000000000FFFF00000100007F:A001 0000000000000000FFFF00000100007F:04D2 01 00000000:00000000 00:00000000 00000000  1002        0 5
   5: 0100007F:A002 0100007F:04D2 01 00000000:00000000
`
	for _, c := range []struct {
		local, remote string
		uid           uint32
		ok            bool
	}{
		{"127.0.0.1:40960", "127.0.0.1:1234", 1000, true},
		{"127.0.0.1:1234", "127.0.0.1:40960", 8, true},
		{"[::1]:40960", "[::1]:1234", 1001, true},
		{"127.0.0.1:40961", "127.0.0.1:1234", 1002, true},          // of a socket for both
		{"[::ffff:127.0.0.1]:40961", "127.0.0.1:1234", 1002, true}, // as the other side may have it
		{"127.0.0.1:40962", "127.0.0.1:1234", 0, false},            // cut off
		{"127.0.0.1:40960", "127.0.0.1:1235", 0, false},
		{"127.0.0.2:40960", "127.0.0.1:1234", 0, false},
	} {
		uid, ok := find(strings.NewReader(table), netip.MustParseAddrPort(c.local), netip.MustParseAddrPort(c.remote))
		if uid != c.uid || ok != c.ok {
			t.Errorf("%s to %s: %d, %v", c.local, c.remote, uid, ok)
		}
	}
}

// TestOwner asks the kernel for this user's and, where root can become one, another's.
func TestOwner(t *testing.T) {
	table, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Logf("%s: %v", addr, err)
			continue
		}
		defer l.Close()
		own, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if uid, err := table.Owner(c); err != nil || int(uid) != os.Geteuid() {
			t.Errorf("%s: user %d, %v", addr, uid, err)
		}
		setpriv, err := exec.LookPath("setpriv")
		if err != nil || os.Getuid() != 0 || strings.Contains(addr, "::") {
			continue
		}
		host, port, _ := net.SplitHostPort(l.Addr().String())
		cmd := exec.Command(setpriv, "--reuid", "65533", "--regid", "65533", "--clear-groups", "bash", "-c", "exec 3<>/dev/tcp/"+host+"/"+port+"; read -r _ <&3")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if c, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		if uid, err := table.Owner(c); err != nil || uid != 65533 {
			t.Errorf("another's: user %d, %v", uid, err)
		}
		c.Close()
		cmd.Wait()
	}
}

func TestUnknown(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := (&Table{}).Owner(a); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("a pipe: %v", err)
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("0100007F:04D2")
	f.Add("0000000000000000FFFF00000100007F:A001")
	f.Fuzz(func(t *testing.T, text string) {
		if a, err := address(text); err == nil && !a.IsValid() {
			t.Errorf("%q is %v", text, a)
		}
	})
}
