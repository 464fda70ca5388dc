package migration

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"vmm/machine"
)

// Destination receives a machine.
type Destination struct {
	link  *link
	Hello Hello
	Final Final
	// Memory is the guest's, once Receive has returned without an error: whoever takes it
	// closes it.
	Memory *machine.Memory
}

// Accept begins to receive from a connection, which it closes if it returns an error;
// token is what the source must know, if it is not empty. The Destination must be closed.
// When ctx ends meanwhile, the connection is closed and the error is ctx's, as it is in
// Receive and Ready.
func Accept(ctx context.Context, c net.Conn, token string) (*Destination, error) {
	d := &Destination{link: newLink(c)}
	err := d.link.within(ctx, func() error { return d.greet(token) })
	if err != nil {
		d.Refuse(err)
		d.Close()
		return nil, err
	}
	return d, nil
}

// greet finds out what the source is, and whether it may send.
func (d *Destination) greet(token string) error {
	if err := d.link.want(frameHello, &d.Hello); err != nil {
		return err
	}
	switch h := d.Hello; {
	case subtle.ConstantTimeCompare([]byte(h.Token), []byte(token)) != 1:
		return errors.New("the key is another one's")
	case h.Version != Version:
		return fmt.Errorf("it speaks version %d of the protocol, this vmm version %d", h.Version, Version)
	case h.Memory < machine.MinMemory || h.Memory > machine.MaxMemory || h.Memory%pageSize != 0:
		return fmt.Errorf("a memory of %d bytes", h.Memory)
	}
	return nil
}

// Receive takes memory and state, while the guest runs at the other side. After an error,
// which the source is told, Memory is freed.
func (d *Destination) Receive(ctx context.Context) error {
	err := d.link.within(ctx, d.receive)
	if err != nil {
		d.Refuse(err)
		if d.Memory != nil {
			err = errors.Join(err, d.Memory.Close())
			d.Memory = nil
		}
	}
	return err
}

func (d *Destination) receive() (err error) {
	if d.Memory, err = machine.NewMemory(d.Hello.Memory); err != nil {
		return err
	}
	if err := d.link.signal(frameAccept); err != nil {
		return err
	}
	for {
		kind, size, err := d.link.next()
		if err != nil {
			return err
		}
		switch kind {
		case framePages, frameZeros:
			err = d.pages(kind, size)
		case frameFinal:
			return d.final(size)
		default:
			err = errProtocol
		}
		if err != nil {
			return err
		}
	}
}

// pages reads pages into memory.
func (d *Destination) pages(kind byte, size int) error {
	var offset [8]byte
	if size < len(offset) {
		return errProtocol
	}
	if _, err := io.ReadFull(d.link.r, offset[:]); err != nil {
		return err
	}
	n := uint64(size - len(offset))
	if kind == frameZeros {
		var length [8]byte
		if n != uint64(len(length)) {
			return errProtocol
		}
		if _, err := io.ReadFull(d.link.r, length[:]); err != nil {
			return err
		}
		n = binary.LittleEndian.Uint64(length[:])
	}
	at := binary.LittleEndian.Uint64(offset[:])
	if at > d.Hello.Memory || n > d.Hello.Memory-at || n > maxPages {
		return errProtocol
	}
	for _, part := range d.Memory.Range(int64(at), int64(n)) {
		if kind == frameZeros {
			clear(part)
		} else if _, err := io.ReadFull(d.link.r, part); err != nil {
			return err
		}
	}
	return nil
}

func (d *Destination) final(size int) error {
	b, err := d.link.payload(size)
	if err != nil {
		return err
	}
	if err := unmarshal(b, &d.Final); err != nil {
		return err
	}
	if d.Final.State == nil {
		return errProtocol
	}
	return nil
}

// Ready tells the source that the machine could run, and returns nil when it is to.
func (d *Destination) Ready(ctx context.Context) error {
	return d.link.within(ctx, func() error {
		if err := d.link.signal(frameReady); err != nil {
			return err
		}
		if err := d.link.want(frameGo, nil); err != nil {
			return fmt.Errorf("the VM stays where it was: %w", err)
		}
		d.link.signal(frameRunning) // it runs, whether the source hears of it or not
		return nil
	})
}

// Refuse tells the source why the machine cannot run here.
func (d *Destination) Refuse(err error) {
	d.link.send(frameError, []byte(err.Error()))
	d.link.w.Flush()
}

// Close ends the connection.
func (d *Destination) Close() { d.link.conn.Close() }
