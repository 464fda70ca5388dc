// Package volume keeps directories that outlast the VMs which use them, by names, as docker's
// volumes.
//
// A Store is a directory that any number of processes use. Each volume is a directory there
// with its data, its description, and a file that who uses it has a shared lock on.
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/flock"
	"vmm/internal/paths"
)

// The errors of a Store.
var (
	ErrNotFound = errors.New("no such volume")
	ErrInUse    = errors.New("a VM is using it")
	ErrName     = errors.New("a volume's name has letters, digits, dots, dashes and underlines, begins with a letter or a digit, and has at most 128 of them")
)

// Store is the volumes of a user.
type Store struct{ dir string }

// Open returns the store of the user who runs this process. The error is paths.ErrNoHome.
func Open() (*Store, error) {
	data, err := paths.Data()
	if err != nil {
		return nil, err
	}
	return At(filepath.Join(data, "volumes")), nil
}

// At returns the store in a directory, which need not be there.
func At(dir string) *Store { return &Store{dir} }

// Volume is a volume as it was when it was looked at.
type Volume struct {
	Name    string            `json:"name"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Anonymous is one whose name nobody has chosen.
	Anonymous bool `json:"anonymous,omitempty"`
	dir       string
}

// Data is the directory of what is in the volume.
func (v *Volume) Data() string { return filepath.Join(v.dir, "data") }

// LockFile is a file that who uses the volume has a shared flock(2) on meanwhile.
func (v *Volume) LockFile() string { return filepath.Join(v.dir, lockFile) }

const (
	description = "volume.json"
	lockFile    = "lock"
	// removed is what begins the names of directories that are on their way out.
	removed = ".removed-"
	making  = ".making-"
)

// Its length is no part of it: counted repetitions are written out when the program starts.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

func validName(name string) bool { return len(name) <= 128 && nameForm.MatchString(name) }

// Create makes a volume, or returns the one that there is of that name, as it is. Without a name
// it is anonymous. The error may be ErrName.
func (s *Store) Create(name string, labels map[string]string) (*Volume, error) {
	v := &Volume{Name: name, Created: time.Now(), Labels: labels}
	if name == "" {
		var id [32]byte
		rand.Read(id[:])
		v.Name, v.Anonymous = hex.EncodeToString(id[:]), true
	}
	if !validName(v.Name) {
		return nil, fmt.Errorf("%q: %w", v.Name, ErrName)
	}
	if there, err := s.Get(v.Name); !errors.Is(err, ErrNotFound) {
		return there, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	// It is made whole, under another name.
	made, err := os.MkdirTemp(s.dir, making)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(made)
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{description: append(b, '\n'), lockFile: nil} {
		if err := os.WriteFile(filepath.Join(made, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(filepath.Join(made, "data"), 0o755); err != nil {
		return nil, err
	}
	v.dir = filepath.Join(s.dir, v.Name)
	err = unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, v.dir, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) { // somebody else was faster
		return s.Get(v.Name)
	}
	if err != nil {
		return nil, &os.PathError{Op: "rename", Path: made, Err: err}
	}
	return v, nil
}

// Get returns a volume. The error may be ErrNotFound.
func (s *Store) Get(name string) (*Volume, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%q: %w", name, ErrNotFound)
	}
	v := &Volume{}
	dir := filepath.Join(s.dir, name)
	b, err := os.ReadFile(filepath.Join(dir, description))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	v.Name, v.dir = name, dir
	return v, nil
}

// List returns all volumes, by name.
func (s *Store) List() ([]*Volume, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []*Volume
	for _, e := range entries {
		if !validName(e.Name()) {
			continue
		}
		v, err := s.Get(e.Name())
		switch {
		case errors.Is(err, ErrNotFound): // it has just gone
		case err != nil:
			return nil, err
		default:
			out = append(out, v)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// InUse reports whether somebody uses the volume.
func (v *Volume) InUse() (bool, error) {
	f, err := v.seize()
	if errors.Is(err, ErrInUse) {
		return true, nil
	}
	if err == nil {
		f.Close()
	}
	return false, err
}

// seize locks a volume that nobody uses, until the file is closed. The error may be ErrInUse.
func (v *Volume) seize() (*os.File, error) {
	f, err := os.Open(v.LockFile())
	if err != nil {
		return nil, err
	}
	err = flock.Current(f, unix.LOCK_EX)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, flock.ErrBusy):
		err = ErrInUse
	case errors.Is(err, os.ErrNotExist):
		err = ErrNotFound
	}
	f.Close()
	return nil, fmt.Errorf("volume %s: %w", v.Name, err)
}

// Remove removes a volume with what is in it. The error may be ErrNotFound or ErrInUse.
func (s *Store) Remove(name string) error {
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	f, err := v.seize()
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	// First it has no name: half a volume is none.
	gone, err := os.MkdirTemp(s.dir, removed)
	if err != nil {
		return err
	}
	if err := os.Rename(v.dir, filepath.Join(gone, v.Name)); err != nil {
		return errors.Join(err, os.Remove(gone))
	}
	return s.clean(gone)
}

// clean removes a directory whatever the modes of those in it.
func (s *Store) clean(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Getuid() == 0 {
		return err
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Prune removes the volumes that nobody uses: those that are anonymous, or with all, all of
// them. It returns their names, also with an error.
func (s *Store) Prune(ctx context.Context, all bool) (names []string, err error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	for _, v := range list {
		if !v.Anonymous && !all {
			continue
		}
		if ctx.Err() != nil {
			return names, context.Cause(ctx)
		}
		err := s.Remove(v.Name)
		switch {
		case errors.Is(err, ErrInUse), errors.Is(err, ErrNotFound):
		case err != nil:
			return names, err
		default:
			names = append(names, v.Name)
		}
	}
	return names, s.tidy()
}

// tidy removes what was left by who was ended while removing.
func (s *Store) tidy() error {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), removed) {
			err = errors.Join(err, s.clean(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}
