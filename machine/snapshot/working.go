package snapshot

import (
	"encoding/binary"
	"errors"
	"os"

	"vmm/machine"
)

// runSize is that of a run in the file: the first page, the number of pages, and
// whether they were written to, each 32 bits, little-endian.
const runSize = 12

// WorkingSet returns the pages that an earlier machine of the snapshot has used;
// none if nobody has noted them.
func (s *Snapshot) WorkingSet() machine.WorkingSet {
	b, err := readFile(s.Path(workingFile))
	if err != nil {
		return nil
	}
	var out machine.WorkingSet
	for ; len(b) >= runSize; b = b[runSize:] {
		le := binary.LittleEndian
		out = append(out, machine.PageRange{Page: le.Uint32(b), Pages: le.Uint32(b[4:]), Written: le.Uint32(b[8:]) != 0})
	}
	return out
}

// PrepareWorkingSet opens the file for NoteWorkingSet, whose process may not open any
// by then.
func (s *Snapshot) PrepareWorkingSet() (err error) {
	s.working, err = openFile(s.Path(workingFile), os.O_WRONLY|os.O_CREATE)
	return err
}

// NoteWorkingSet keeps a working set for the next time, if PrepareWorkingSet could
// prepare that. One that others write at the same time may become a mixture of all: it
// is only what is read ahead.
func (s *Snapshot) NoteWorkingSet(set machine.WorkingSet) error {
	if s.working == nil {
		return nil
	}
	b := make([]byte, 0, runSize*len(set))
	for _, r := range set {
		le := binary.LittleEndian
		written := uint32(0)
		if r.Written {
			written = 1
		}
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, r.Page), r.Pages), written)
	}
	_, err := s.working.WriteAt(b, 0)
	return errors.Join(err, s.working.Truncate(int64(len(b))))
}
