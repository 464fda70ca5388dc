// Package gdb serves the GDB remote serial protocol (GDB manual, appendix E) for
// a machine: its vCPUs are threads, its memory is the guest's by its page tables.
package gdb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
)

// maxPacket bounds a packet, in bytes.
const maxPacket = 16 << 10

// interrupt is the byte by which gdb stops the target.
const interrupt = 0x03

// link sends and receives packets.
type link struct {
	r *bufio.Reader
	w io.Writer
	// interrupted is called for an interrupt between packets.
	interrupted func()

	noAck atomic.Bool

	mu sync.Mutex // of w
}

var errTooLong = errors.New("a packet that is too long")

// receive returns the next packet's contents.
func (l *link) receive() (string, error) {
	for {
		b, err := l.r.ReadByte()
		if err != nil {
			return "", err
		}
		switch b {
		case interrupt:
			l.interrupted()
			continue
		case '$':
		default: // acknowledgements, and noise
			continue
		}
		var body []byte
		sum := byte(0)
		for {
			if b, err = l.r.ReadByte(); err != nil {
				return "", err
			}
			if b == '#' {
				break
			}
			if sum += b; len(body) >= maxPacket {
				return "", errTooLong
			}
			body = append(body, b)
		}
		var want [2]byte
		if _, err := io.ReadFull(l.r, want[:]); err != nil {
			return "", err
		}
		if l.noAck.Load() {
			return unescape(body), nil
		}
		if fmt.Sprintf("%02x", sum) != strings.ToLower(string(want[:])) {
			l.write("-")
			continue
		}
		l.write("+")
		return unescape(body), nil
	}
}

// unescape undoes the escapes of binary data.
func unescape(b []byte) string {
	out := b[:0]
	for i := 0; i < len(b); i++ {
		if b[i] == '}' && i+1 < len(b) {
			i++
			out = append(out, b[i]^0x20)
			continue
		}
		out = append(out, b[i])
	}
	return string(out)
}

func (l *link) write(s string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := io.WriteString(l.w, s)
	return err
}

// send sends a packet. What it holds is text, but for what is escaped here.
func (l *link) send(body string) error {
	var b strings.Builder
	b.WriteByte('$')
	sum := byte(0)
	put := func(c byte) {
		sum += c
		b.WriteByte(c)
	}
	for _, c := range []byte(body) {
		switch c {
		case '$', '#', '}', '*':
			put('}')
			put(c ^ 0x20)
		default:
			put(c)
		}
	}
	fmt.Fprintf(&b, "#%02x", sum)
	return l.write(b.String())
}
