package hostile

import (
	"encoding/binary"
	"math/rand/v2"
)

// Any knows of no request.
func Any(r *rand.Rand, b []byte) int {
	fill(r, b)
	return 0
}

func fill(r *rand.Rand, b []byte) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, Pick(r, Sizes))
		b = b[8:]
	}
}

// Disk is struct virtio_blk_req (5.2.6).
func Disk(r *rand.Rand, b []byte) int {
	fill(r, b)
	binary.LittleEndian.PutUint32(b, r.Uint32N(16))
	if r.IntN(4) > 0 {
		binary.LittleEndian.PutUint64(b[8:], r.Uint64N(2048))
	}
	return 0
}

const netHeader = 12 // struct virtio_net_hdr (5.1.6)

// Frame is a header and a frame, mostly a plain one to everybody.
func Frame(r *rand.Rand, b []byte) int {
	fill(r, b)
	if r.IntN(4) > 0 {
		clear(b[:netHeader])
	}
	copy(b[netHeader:], "\xff\xff\xff\xff\xff\xff\x02\x01\x02\x03\x04\x05\x08\x00\x45")
	return 0
}

// Console is struct virtio_console_control (5.3.6.2).
func Console(r *rand.Rand, b []byte) int {
	fill(r, b)
	binary.LittleEndian.PutUint32(b, r.Uint32N(4))
	binary.LittleEndian.PutUint16(b[4:], uint16(r.IntN(9)))
	binary.LittleEndian.PutUint16(b[6:], uint16(r.IntN(2)))
	return 0
}

// Vsock is struct virtio_vsock_hdr (5.10.6), of a guest whose CID is 3.
func Vsock(r *rand.Rand, b []byte) int {
	le := binary.LittleEndian
	le.PutUint64(b, 3)
	le.PutUint64(b[8:], 2)
	le.PutUint32(b[16:], r.Uint32N(8))
	le.PutUint32(b[20:], r.Uint32N(8))
	le.PutUint32(b[24:], uint32(Pick(r, Sizes)))
	le.PutUint16(b[28:], 1)
	le.PutUint16(b[30:], uint16(r.IntN(9)))
	le.PutUint32(b[32:], r.Uint32N(4))
	le.PutUint32(b[36:], uint32(Pick(r, Sizes)))
	le.PutUint32(b[40:], uint32(Pick(r, Sizes)))
	return 44
}

// FUSE's opcodes.
const (
	opInit      = 26
	opFallocate = 43
	opLseek     = 46
	opcodes     = 54
)

var (
	// sized are those that say how much is to be read, or carry much: READ, WRITE,
	// SETXATTR, GETXATTR, LISTXATTR, READDIR, IOCTL, READDIRPLUS.
	sized = []uint32{15, 16, 21, 22, 23, 28, 39, 44}
	// names are what requests name, also two at once, and what leads out of a share.
	names   = []string{"a\x00", "b\x00", "a\x00b\x00", "..\x00", "user.x\x00", "c\x00", "l\x00../../canary\x00", "l\x00/\x00", "l\x00", "../canary\x00", "/etc/passwd\x00"}
	namesAt = []int{0, 8, 16, 24, 40}
	// named are requests that end in names, with what is before these (linux/fuse.h).
	named = []struct {
		op uint32
		at int
	}{{1, 0}, {6, 0}, {8, 16}, {9, 8}, {10, 0}, {11, 0}, {12, 8}, {13, 8}, {21, 8}, {22, 8}, {24, 0}, {35, 16}, {45, 16}}
)

const fuseHeader, rootNode = 40, 1

// FS is a FUSE request: a header, numbers, and a name or two.
func FS(r *rand.Rand, b []byte) int {
	le := binary.LittleEndian
	op, same := r.Uint32N(opcodes), r.Uint64N(4)
	if r.IntN(2) == 0 {
		op, same = Pick(r, sized), Pick(r, Sizes)
	}
	switch {
	case op == opFallocate: // fills the host's disk, as it may
		op = opLseek
	case r.IntN(5) == 0: // without a mount, nothing is served
		op = opInit
	}
	body := b[fuseHeader:]
	for i := 0; i+8 <= len(body); i += 8 {
		le.PutUint64(body[i:], same)
		if r.IntN(4) == 0 {
			le.PutUint64(body[i:], Pick(r, Sizes))
		}
	}
	if op == opInit {
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], 36)
		le.PutUint32(body[12:], r.Uint32())
	}
	size, name, at := 0, Pick(r, names), Pick(r, namesAt)
	if op != opInit && r.IntN(2) == 0 {
		n := Pick(r, named)
		op, at, size = n.op, n.at, fuseHeader+n.at+len(name)
	}
	copy(body[at:], name)
	node := r.Uint64N(16)
	if r.IntN(2) == 0 {
		node = rootNode
	}
	le.PutUint32(b, uint32(Pick(r, Sizes)))
	le.PutUint32(b[4:], op)
	le.PutUint64(b[8:], r.Uint64N(16))
	le.PutUint64(b[16:], node)
	clear(b[24:fuseHeader])
	return size
}
