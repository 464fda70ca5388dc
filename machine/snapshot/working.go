package snapshot

import (
	"encoding/binary"
	"os"

	"vmm/machine"
)

// runSize is that of a run in the file: the first page, the number of pages, and
// whether they were written to, each 32 bits, little-endian.
const runSize = 12

// WorkingSet returns the pages that an earlier machine of the snapshot has used;
// none if nobody has noted them.
func (s *Snapshot) WorkingSet() machine.WorkingSet {
	b, err := os.ReadFile(s.Path(workingFile))
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

// NoteWorkingSet keeps a working set for the next time.
func (s *Snapshot) NoteWorkingSet(set machine.WorkingSet) error {
	b := make([]byte, 0, runSize*len(set))
	for _, r := range set {
		le := binary.LittleEndian
		written := uint32(0)
		if r.Written {
			written = 1
		}
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, r.Page), r.Pages), written)
	}
	tmp := s.Path(workingFile + ".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.Path(workingFile))
}
