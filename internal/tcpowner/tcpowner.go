// Package tcpowner tells whose process of this host is at the other end of a TCP
// connection, which TCP itself does not say.
package tcpowner

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// ErrUnknown is that of a connection whose other end is not a socket of this host.
var ErrUnknown = errors.New("the other end of the connection is no socket of this host")

// Table is the kernel's list of TCP sockets (proc_pid_net(5)) in the network namespace in
// which it was opened. Its methods may be called one after the other.
type Table struct{ files []*os.File }

// Open opens the list.
func Open() (*Table, error) {
	t := &Table{}
	for _, name := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		t.files = append(t.files, f)
	}
	return t, nil
}

// Close closes it. A nil Table can be closed too.
func (t *Table) Close() error {
	if t == nil {
		return nil
	}
	var err error
	for _, f := range t.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Owner returns the user who has made the socket at the other end of a connection.
func (t *Table) Owner(c net.Conn) (uid uint32, err error) {
	here, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return 0, err
	}
	there, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return 0, err
	}
	for _, f := range t.files {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		if uid, ok := find(f, there, here); ok {
			return uid, nil
		}
	}
	return 0, fmt.Errorf("%v: %w", there, ErrUnknown)
}

// Fields of a line of the list.
const (
	fieldLocal  = 1
	fieldRemote = 2
	fieldUID    = 7
)

// find finds a socket by both of its addresses.
func find(table io.Reader, local, remote netip.AddrPort) (uid uint32, ok bool) {
	same := func(text string, a netip.AddrPort) bool {
		b, err := address(text)
		return err == nil && b == netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	for lines := bufio.NewScanner(table); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) <= fieldUID || !same(f[fieldLocal], local) || !same(f[fieldRemote], remote) {
			continue
		}
		if n, err := strconv.ParseUint(f[fieldUID], 10, 32); err == nil {
			return uint32(n), true
		}
	}
	return 0, false
}

// address reads an address as the list has it: words of 32 bits in the host's order, each
// of which holds four bytes in the network's, and the port.
func address(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
