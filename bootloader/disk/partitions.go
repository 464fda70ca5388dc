package disk

import (
	"encoding/binary"
	"fmt"
	"io"
)

// part is a partition, or a disk without a table.
type part struct {
	number      int   // as Linux counts; 0 for the whole disk
	start, size int64 // bytes
	kind        string
	uuid        string // PARTUUID as Linux has it; "" where there is none
	member      bool   // of an array
}

// String is what an error calls it.
func (p part) String() string {
	if p.number == 0 {
		return "the whole disk"
	}
	return fmt.Sprintf("partition %d", p.number)
}

// The types of partitions that say what is in them (UAPI Group, Discoverable
// Partitions Specification). part.kind is one of these, in GPT, or another.
const typeRoot = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" // SD_GPT_ROOT_X86_64

// typeUnused is that of an entry without a partition (UEFI 2.10, 5.3.3).
const typeUnused = "00000000-0000-0000-0000-000000000000"

// sector is the unit of virtio-blk, in which the guest reads its partition table.
const sector = 512

// The master boot record and its extended partitions.
const (
	mbrMagic     = 0xaa55
	mbrMagicAt   = 510
	mbrSignature = 440
	mbrTable     = 446
	mbrEntry     = 16
	mbrGPT       = 0xee
	firstLogical = 5

	maxPartitions = 256 // Linux's own limit of a disk's
)

// GPT's header and entries (UEFI 2.10, 5.3).
const (
	gptMagic     = "EFI PART"
	gptEntryLBA  = 72
	gptEntries   = 80
	gptEntrySize = 84
	gptMaxEntry  = 4096
)

// partitions reads the partition table. A disk without one is one partition.
func partitions(r io.ReaderAt, size int64) []part {
	whole := []part{{size: size}}
	var head [sector]byte
	if _, err := r.ReadAt(head[:], 0); err != nil || binary.LittleEndian.Uint16(head[mbrMagicAt:]) != mbrMagic {
		return whole
	}
	entries, ok := mbrEntries(head[:])
	if !ok {
		return whole // the boot sector of a file system
	}
	d := &table{r: r, size: size}
	for _, e := range entries {
		if e.kind != mbrGPT {
			continue
		}
		for _, block := range []int64{sector, 4096} {
			if d.gpt(block, block) || d.gpt(size/block*block-block, block) {
				return d.out
			}
		}
	}
	signature := binary.LittleEndian.Uint32(head[mbrSignature:])
	for i, e := range entries {
		d.mbr(i+1, e.start, e, signature)
	}
	for _, e := range entries {
		if e.extended() {
			d.logical(e.start, signature)
			break // Linux too reads one
		}
	}
	if len(d.out) == 0 {
		return whole
	}
	return d.out
}

// table gathers the partitions of a disk.
type table struct {
	r    io.ReaderAt
	size int64
	out  []part
}

// add takes a partition that lies on the disk.
func (d *table) add(p part) {
	if p.start > 0 && p.size > 0 && p.start < d.size {
		p.size = min(p.size, d.size-p.start)
		d.out = append(d.out, p)
	}
}

// mbrPart is an entry of a master boot record; start and size are in sectors.
type mbrPart struct {
	kind        byte
	start, size int64
}

func (e mbrPart) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// mbrEntries reads the four entries. They are none where one has a flag that no
// partition has.
func mbrEntries(b []byte) (out [4]mbrPart, ok bool) {
	le := binary.LittleEndian
	for i := range out {
		e := b[mbrTable+mbrEntry*i:]
		if e[0]&^0x80 != 0 {
			return out, false
		}
		out[i] = mbrPart{e[4], int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))}
	}
	return out, true
}

// mbr adds the partition of an entry, unless that holds others.
func (d *table) mbr(number int, start int64, e mbrPart, signature uint32) {
	if e.kind == 0 || e.extended() {
		return
	}
	p := part{number: number, start: start * sector, size: e.size * sector}
	if signature != 0 {
		p.uuid = fmt.Sprintf("%08x-%02x", signature, number)
	}
	d.add(p)
}

// logical follows the chain of an extended partition: each link has an entry for its
// partition, relative to the link, and one for the next link, relative to the first.
func (d *table) logical(extended int64, signature uint32) {
	number := firstLogical
	at := extended
	for range maxPartitions {
		var b [sector]byte
		if _, err := d.r.ReadAt(b[:], at*sector); err != nil || binary.LittleEndian.Uint16(b[mbrMagicAt:]) != mbrMagic {
			return
		}
		entries, _ := mbrEntries(b[:])
		next := int64(0)
		for _, e := range entries[:2] {
			switch {
			case e.size == 0:
			case e.extended():
				next = extended + e.start
			default:
				d.mbr(number, at+e.start, e, signature)
				number++
			}
		}
		if next <= extended {
			return
		}
		at = next
	}
}

// gpt reads the table whose header is at a place, in blocks of a size. It reports
// whether there is one.
func (d *table) gpt(at, block int64) bool {
	le := binary.LittleEndian
	var head [sector]byte
	if _, err := d.r.ReadAt(head[:], at); err != nil || string(head[:len(gptMagic)]) != gptMagic {
		return false
	}
	first, count, size := le.Uint64(head[gptEntryLBA:]), le.Uint32(head[gptEntries:]), int64(le.Uint32(head[gptEntrySize:]))
	limit := uint64(d.size / block)
	if first > limit || size < 128 || size > gptMaxEntry {
		return false
	}
	for i := range int64(min(count, maxPartitions)) {
		var e [128]byte
		if _, err := d.r.ReadAt(e[:], int64(first)*block+i*size); err != nil {
			break
		}
		begin, end := le.Uint64(e[32:]), le.Uint64(e[40:]) // the end belongs to it
		kind := guid(e[:])
		if kind == typeUnused || begin >= limit || end < begin {
			continue
		}
		end = min(end, limit-1)
		d.add(part{number: int(i) + 1, start: int64(begin) * block, size: int64(end-begin+1) * block, kind: kind, uuid: guid(e[16:])})
	}
	return len(d.out) > 0
}

// guid writes a GUID as it is stored in a GPT: its first three fields are little-endian.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
