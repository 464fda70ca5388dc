package storage

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmm/internal/vmem"
)

// Mapped is files, one behind the other, in this process's memory: what is read of them is
// the host's page cache, which all who map them share.
type Mapped struct {
	bytes    []byte
	readOnly bool
	files    []*File
}

// MappedUnit is what the length of a Mapped is a multiple of, in bytes: a huge page.
const MappedUnit = vmem.HugePage

// OpenMapped maps files, in this order, for reading. Each but the last has a length of whole
// pages of 4 KiB; what is behind the last one reads as zeros. Who shortens one of them meanwhile
// ends the processes that read it. The files are locked as those of OpenConcat are.
func OpenMapped(names ...string) (*Mapped, error) { return openMapped(true, names) }

// OpenMappedWritable maps one file for reading and writing, whose length is a multiple of
// MappedUnit. Holes in it are filled: a store has no way to report that the host's disk is full.
func OpenMappedWritable(name string) (*Mapped, error) { return openMapped(false, []string{name}) }

func openMapped(readOnly bool, names []string) (_ *Mapped, err error) {
	m := &Mapped{readOnly: readOnly}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	var size int64
	for i, name := range names {
		f, err := OpenFile(name, readOnly, Writeback)
		if err != nil {
			return nil, err
		}
		m.files = append(m.files, f)
		switch n := f.Size(); {
		case n == 0:
			return nil, fmt.Errorf("%s: it is empty", name)
		case !readOnly && n%MappedUnit != 0:
			return nil, fmt.Errorf("%s: %d bytes are no multiple of 2 MiB (truncate -s %%2M makes it one)", name, n)
		case i < len(names)-1 && n%vmem.Page != 0:
			return nil, fmt.Errorf("%s: %d bytes are not whole pages", name, n)
		default:
			size += n
		}
	}
	prot := unix.PROT_READ
	if !readOnly {
		prot |= unix.PROT_WRITE
		if _, err := m.files[0].fallocate("fallocate", 0, 0, size); err != nil {
			return nil, err
		}
	}
	if m.bytes, err = vmem.Reserve(uint64(size+MappedUnit-1)&^(MappedUnit-1), unix.PROT_READ); err != nil {
		return nil, err
	}
	var at int64
	for _, f := range m.files {
		if err := vmem.Map(m.bytes[at:], f.fd, 0, f.Size(), prot, unix.MAP_SHARED); err != nil {
			return nil, f.fail("mmap", err)
		}
		at += f.Size()
	}
	return m, nil
}

// Bytes is the memory. Nobody may write to it where it is for reading only.
func (m *Mapped) Bytes() []byte { return m.bytes }

// ReadOnly reports whether the files are open for reading only.
func (m *Mapped) ReadOnly() bool { return m.readOnly }

// Flush returns when what was written to the memory before it is on the host's disk.
func (m *Mapped) Flush() error {
	if m.readOnly {
		return nil
	}
	var errs []error
	for _, f := range m.files {
		errs = append(errs, f.Sync())
	}
	return errors.Join(errs...)
}

// Close frees the memory, which nobody may use any more, and closes the files.
func (m *Mapped) Close() error {
	var errs []error
	if m.bytes != nil {
		errs = append(errs, vmem.Release(m.bytes))
		m.bytes = nil
	}
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
