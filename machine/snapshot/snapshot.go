// Package snapshot keeps saved machines in directories. docs/snapshots.md
// describes the files.
//
// The memory is a sparse file of the size of RAM, to be mapped: restoring costs
// the same whatever its size. So it is not read then; its checksums are compared
// when the file is not the one that was written here, as its stamp tells.
package snapshot

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
	"vmm/machine"
)

// The files of a snapshot.
const (
	ManifestFile = "snapshot.json" // the Manifest, and its checksum on a second line
	memoryFile   = "memory"
	sumsFile     = "memory.crc"  // CRC-32C of every chunk of the memory
	zstdFile     = "memory.zst"  // in the place of memory: its chunks, compressed
	stampFile    = "stamp"       // how the files looked when they were checked last
	workingFile  = "working-set" // the pages that the last restore used
)

const (
	// Format is Manifest.Format.
	Format = "vmm snapshot"
	// Version is Manifest.Version.
	Version = 1
	// chunk is what the memory's checksums are of, in bytes.
	chunk    = 1 << 20
	pageSize = 4096
)

// Manifest is what a snapshot says of itself.
type Manifest struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	ID      string          `json:"id"` // random: what a difference names its parent by
	Created time.Time       `json:"created"`
	VMM     string          `json:"vmm"`    // the version of the program
	Config  json.RawMessage `json:"config"` // how the VM is made: package vm's
	State   *machine.State  `json:"state"`
	Memory  Memory          `json:"memory"`
	Files   []File          `json:"files"` // all others, with their checksums
}

// Memory describes the memory's file.
type Memory struct {
	Size   int64  `json:"size"`             // bytes
	Parent string `json:"parent,omitempty"` // the snapshot that has what this one has not: a path, from this directory or absolute
	// ParentID is its Manifest.ID.
	ParentID string `json:"parentID,omitempty"`
	// Parts are offsets and lengths of what the file holds, in bytes.
	Parts [][2]int64 `json:"parts"`
	Zstd  []int64    `json:"zstd,omitempty"` // offsets of the chunks in the compressed file, and its end
}

// File is a file's size and checksum.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Error is the error for a snapshot that cannot be used: ErrNotExist, ErrCorrupt, the
// host's, or a *machine.StateError.
type Error struct {
	Dir string // the snapshot's
	Err error
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("snapshot %s: %v", e.Dir, e.Err) }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// The reasons why a snapshot cannot be used.
var (
	ErrNotExist = errors.New("there is no snapshot in this directory")
	ErrCorrupt  = errors.New("the snapshot is damaged")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// Snapshot is an open one. All but Close can be called from any goroutine.
type Snapshot struct {
	Manifest
	Dir    string
	parent *Snapshot
	memory *os.File
	text   []byte // the Manifest's file as it was read
	// working is what a working set is noted in; nil if it is not to be.
	working *os.File
}

// Options say how a snapshot is opened.
type Options struct {
	// Verify compares all checksums, also of files that look as when they were
	// checked last.
	Verify bool
	// Cache is that the snapshot is one of Writer.Cache: nobody has signed how its files looked.
	Cache bool
	// Progress is told how much of the memory is unpacked, in bytes; nil drops it.
	Progress func(done, total int64)
}

// maxParents bounds a chain of differences.
const maxParents = 64

// Open opens a snapshot. Its error is an *Error.
func Open(dir string, o Options) (*Snapshot, error) {
	s, err := open(dir, o, maxParents)
	var known *Error
	if err != nil && !errors.As(err, &known) {
		err = &Error{dir, err}
	}
	return s, err
}

func open(dir string, o Options, depth int) (_ *Snapshot, err error) {
	s := &Snapshot{Dir: dir}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	m, text, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	s.Manifest, s.text = *m, text
	if s.Memory.Parent != "" {
		path := s.Memory.Parent
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if depth == 0 {
			return nil, corrupt("more than %d parents", maxParents)
		}
		if s.parent, err = open(path, o, depth-1); err != nil {
			return nil, fmt.Errorf("its parent %s: %w", path, err)
		}
		if s.parent.ID != s.Memory.ParentID || s.parent.Memory.Size != s.Memory.Size {
			return nil, fmt.Errorf("%s is not its parent any more: it was written anew", path)
		}
	}
	if err := s.openMemory(); err != nil {
		return nil, err
	}
	if o.Verify || !s.stamped(o.Cache) {
		if err := s.verify(); err != nil {
			return nil, err
		}
		s.stamp(o.Cache) // of a directory that is not ours, it is checked each time
	}
	if s.Memory.Zstd != nil {
		return s, s.unpack(o.Progress)
	}
	return s, nil
}

// ReadManifest reads what a snapshot says of itself, and looks at nothing else. The error is
// ErrNotExist, ErrCorrupt, or the system's.
func ReadManifest(dir string) (*Manifest, error) {
	m, _, err := readManifest(dir)
	return m, err
}

// readManifest returns the file's text too.
func readManifest(dir string) (m *Manifest, text []byte, err error) {
	text, err = readFile(filepath.Join(dir, ManifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, ErrNotExist
	}
	if err != nil {
		return nil, nil, err
	}
	m = &Manifest{}
	return m, text, parse(text, m)
}

// parse reads a manifest with its checksum.
func parse(b []byte, m *Manifest) error {
	text, sum, ok := bytes.Cut(b, []byte{'\n'})
	if want := digest(text); !ok || string(sum) != want+"\n" {
		return unlessForeign(text, corrupt("%s does not match its checksum", ManifestFile))
	}
	if err := json.Unmarshal(text, m); err != nil {
		return unlessForeign(text, corrupt("%s: %v", ManifestFile, err))
	}
	if m.Format != Format || m.Version != Version || m.State == nil || m.ID == "" {
		return unlessForeign(text, corrupt("%s is no snapshot's", ManifestFile))
	}
	return m.Memory.check()
}

// unlessForeign returns what is wrong with a manifest: err, unless it is one of a version that
// has other rules.
func unlessForeign(text []byte, err error) error {
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if json.Unmarshal(text, &head) == nil && head.Format == Format && head.Version != Version {
		return fmt.Errorf("it is of format %d, and this vmm knows format %d: use the vmm that made it", head.Version, Version)
	}
	return err
}

// check finds what cannot be.
func (m *Memory) check() error {
	if m.Size < machine.MinMemory || m.Size > machine.MaxMemory || m.Size%pageSize != 0 {
		return corrupt("a memory of %d bytes", m.Size)
	}
	for at, p := int64(0), m.Parts; len(p) > 0; p = p[1:] {
		if p[0][0] < at || p[0][1] <= 0 || p[0][0]%pageSize != 0 || p[0][1]%pageSize != 0 || p[0][1] > m.Size-p[0][0] {
			return corrupt("a part of memory at %#x", p[0][0])
		}
		at = p[0][0] + p[0][1]
	}
	if m.Zstd != nil && (m.Parent != "" || int64(len(m.Zstd)) != (m.Size+chunk-1)/chunk+1) {
		return corrupt("the compressed memory's index")
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// openMemory opens the memory's file and looks at its size.
func (s *Snapshot) openMemory() (err error) {
	name, size := memoryFile, s.Memory.Size
	if z := s.Memory.Zstd; z != nil {
		name, size = zstdFile, z[len(z)-1]
	}
	if s.memory, err = openFile(filepath.Join(s.Dir, name), os.O_RDONLY); err != nil {
		return err
	}
	st, err := s.memory.Stat()
	if err == nil && st.Size() != size {
		err = corrupt("%s has %d bytes, not %d: it is cut off or not the one that was saved", name, st.Size(), size)
	}
	return err
}

// Backings are what the guest's memory is mapped from.
func (s *Snapshot) Backings() []machine.Backing {
	var out []machine.Backing
	if s.parent != nil {
		out = s.parent.Backings()
	}
	for _, p := range s.Memory.Parts {
		out = append(out, machine.Backing{File: s.memory, Offset: p[0], FileOffset: p[0], Length: p[1]})
	}
	return out
}

// Path is that of a further file of the snapshot.
func (s *Snapshot) Path(name string) string { return filepath.Join(s.Dir, name) }

// Close closes the files. What is mapped stays.
func (s *Snapshot) Close() error {
	var errs []error
	if s.parent != nil {
		errs = append(errs, s.parent.Close())
	}
	if s.memory != nil {
		errs = append(errs, s.memory.Close())
	}
	if s.working != nil {
		errs = append(errs, s.working.Close())
	}
	return errors.Join(errs...)
}

// checked are the files that a stamp is of.
func (s *Snapshot) checked() []string {
	names := []string{ManifestFile, filepath.Base(s.memory.Name())}
	for _, f := range s.Files {
		names = append(names, f.Name)
	}
	return names
}

// look describes the files as the file system has them: what changes a file
// changes this.
func (s *Snapshot) look() (string, error) {
	// What was not on the disk when the host crashed is missing after it.
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	out := bytes.NewBuffer(boot)
	for _, name := range s.checked() {
		var st unix.Stat_t
		if err := unix.Stat(s.Path(name), &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: s.Path(name), Err: err}
		}
		fmt.Fprintln(out, name, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
	}
	return out.String(), nil
}

// stamped reports whether all files look as when they were checked last, by this user unless cache is set.
func (s *Snapshot) stamped(cache bool) bool {
	var key []byte
	if !cache {
		var err error
		if key, err = readKey(); err != nil {
			return false
		}
	}
	stamp, err := readFile(s.Path(stampFile))
	now, bad := s.look()
	return err == nil && bad == nil && hmac.Equal(stamp, signedStamp(key, now))
}

// stamp notes how the files look. Where the user has no directory for a key, nothing is noted.
func (s *Snapshot) stamp(cache bool) error {
	now, err := s.look()
	if err != nil {
		return err
	}
	var key []byte
	if !cache {
		key, err = userKey()
	}
	if errors.Is(err, paths.ErrNoHome) {
		return nil
	}
	if err != nil {
		return err
	}
	return rewrite(s.Path(stampFile), signedStamp(key, now))
}

// verify compares all checksums.
func (s *Snapshot) verify() error {
	for _, f := range s.Files {
		if f.Name != filepath.Base(f.Name) {
			return corrupt("a file called %q", f.Name)
		}
		file, err := openFile(s.Path(f.Name), os.O_RDONLY)
		if err != nil {
			return err
		}
		err = f.verify(file)
		if err = errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return s.verifyMemory()
}

// verify compares a file's size and its checksum. One that is larger is not read: it need not have an end.
func (f *File) verify(file *os.File) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	got := File{f.Name, st.Size(), ""}
	if got.Size == f.Size {
		got, err = sumFile(file, f.Name)
	}
	if err == nil && got != *f {
		err = corrupt("%s does not match its checksum", f.Name)
	}
	return err
}

// sumFile is the size and checksum of a file.
func sumFile(f *os.File, name string) (File, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64))
	return File{name, n, hex.EncodeToString(h.Sum(nil))}, err
}
