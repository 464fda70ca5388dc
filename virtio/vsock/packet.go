package vsock

import "encoding/binary"

// CIDs (virtio 1.2, 5.10.4).
const (
	// HostCID is the host's address on every vsock.
	HostCID = 2
	// MinCID is the lowest that a guest may have.
	MinCID = 3
)

const typeStream = 1 // VIRTIO_VSOCK_TYPE_STREAM

// Operations of packets (5.10.6).
const (
	opRequest       = 1 // VIRTIO_VSOCK_OP_REQUEST
	opResponse      = 2 // VIRTIO_VSOCK_OP_RESPONSE
	opReset         = 3 // VIRTIO_VSOCK_OP_RST
	opShutdown      = 4 // VIRTIO_VSOCK_OP_SHUTDOWN
	opRW            = 5 // VIRTIO_VSOCK_OP_RW
	opCreditUpdate  = 6 // VIRTIO_VSOCK_OP_CREDIT_UPDATE
	opCreditRequest = 7 // VIRTIO_VSOCK_OP_CREDIT_REQUEST
)

// Flags of opShutdown (5.10.6.6).
const (
	shutdownReceive = 1 // VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE
	shutdownSend    = 2 // VIRTIO_VSOCK_SHUTDOWN_F_SEND
	shutdownBoth    = shutdownReceive | shutdownSend
)

// headerSize is that of struct virtio_vsock_hdr.
const headerSize = 44

// header is struct virtio_vsock_hdr (5.10.6).
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	size             uint32 // of the data that follow
	kind, op         uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

func (h *header) decode(b *[headerSize]byte) {
	le := binary.LittleEndian
	h.srcCID, h.dstCID = le.Uint64(b[0:]), le.Uint64(b[8:])
	h.srcPort, h.dstPort = le.Uint32(b[16:]), le.Uint32(b[20:])
	h.size, h.kind, h.op = le.Uint32(b[24:]), le.Uint16(b[28:]), le.Uint16(b[30:])
	h.flags, h.bufAlloc, h.fwdCnt = le.Uint32(b[32:]), le.Uint32(b[36:]), le.Uint32(b[40:])
}

func (h *header) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.size)
	le.PutUint16(b[28:], h.kind)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}
