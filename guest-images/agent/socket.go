package agent

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a vsock stream.
type socket struct{ *os.File }

// Write implements io.Writer.
func (s socket) Write(b []byte) (int, error) { return writeInPieces(s.File.Write, b) }

// pieceSize is what a kernel finds memory for, however little it has: it copies up to 64 KiB that are written to a vsock
// to one piece of memory, and does not wait for more than 8 pages in a row (PAGE_ALLOC_COSTLY_ORDER).
const pieceSize = 16 << 10

// writeInPieces writes what is not written for lack of such memory a little at a time.
func writeInPieces(write func([]byte) (int, error), b []byte) (n int, err error) {
	n, err = write(b)
	for errors.Is(err, unix.ENOMEM) {
		var more int
		for err = nil; err == nil && n < len(b); n += more {
			more, err = write(b[n:min(n+pieceSize, len(b))])
		}
		if more == 0 {
			break
		}
	}
	return n, err
}

// CloseWrite ends what the other side reads.
func (s socket) CloseWrite() error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var down error
	err = raw.Control(func(fd uintptr) { down = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(err, down)
}

func newSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, fmt.Errorf("this kernel has no vsock (CONFIG_VSOCKETS): %w", err)
	}
	if err != nil {
		return -1, fmt.Errorf("vsock: %w", err)
	}
	return fd, nil
}

// listen returns a socket that listens on a port.
func listen(port uint32) (int, error) {
	fd, err := newSocket()
	if err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("vsock port %d: %w", port, err)
	}
	return fd, nil
}

// accept waits for a connection.
func accept(l int) (socket, error) {
	for {
		fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return socket{}, fmt.Errorf("vsock: %w", err)
		}
		return socket{os.NewFile(uintptr(fd), "vsock")}, nil
	}
}

func dial(cid, port uint32) (socket, error) {
	fd, err := newSocket()
	if err != nil {
		return socket{}, err
	}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return socket{}, fmt.Errorf("vsock: %w", err)
	}
	return socket{os.NewFile(uintptr(fd), "vsock")}, nil
}

// siginfo is siginfo_t of <bits/types/siginfo_t.h> for SIGCHLD.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	_                     [128 - 20]byte
}

// waitid waits for a child that has ended, and leaves it as it is.
func waitid(info *siginfo) error {
	const all = 0 // P_ALL
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, all, 0, uintptr(unsafe.Pointer(info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}
