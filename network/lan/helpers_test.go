package lan

import (
	"net"
)

// leaveStale makes a socket that nobody listens on any more.
func leaveStale(path string) error {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// upload sends data to a TCP address.
func upload(address string, data []byte) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(data)
	return err
}
