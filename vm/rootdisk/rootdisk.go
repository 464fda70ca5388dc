// Package rootdisk keeps what VMs write to the roots that container images gave them: on disks, by the VMs'
// names, or in directories.
//
// A Store is a directory that any number of processes use, each for names that it has claimed
// in vm/registry.
package rootdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmm/internal/paths"
	"vmm/internal/vmname"
	"vmm/vm"
)

// ErrOther is the error for a disk that was written over another image.
var ErrOther = errors.New("belongs to another image")

// Store is the disks of a user.
type Store struct{ dir string }

// Open returns the store of the user who runs this process. The error is paths.ErrNoHome.
func Open() (*Store, error) {
	data, err := paths.Data()
	if err != nil {
		return nil, err
	}
	return &Store{filepath.Join(data, "roots")}, nil
}

// A disk's file is called NAME@DIGEST; one on its way, or that is not kept, has this behind it.
const making = ".new"

// find returns the path of a VM's disk, and the digest of the image that it lies over; "" if there is none.
func (s *Store) find(name string) (path, digest string, err error) {
	files, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return "", "", nil
	}
	for _, f := range files {
		if of, digest, ok := strings.Cut(f.Name(), "@"); ok && of == name && !strings.HasSuffix(digest, making) {
			return filepath.Join(s.dir, f.Name()), digest, nil
		}
	}
	return "", "", err
}

// Has reports whether a VM has a disk.
func (s *Store) Has(name string) bool {
	path, _, err := s.find(name)
	return err == nil && path != ""
}

// Take returns the disk of a VM whose root is the image of a digest, and makes one with size bytes of
// room if it has none: made says so. The error may be ErrOther, or that of vm.NewRootDisk.
func (s *Store) Take(name, digest string, size int64) (path string, made bool, err error) {
	path, of, err := s.find(name)
	switch {
	case err != nil:
		return "", false, err
	case path != "" && of != digest:
		return "", false, fmt.Errorf("the disk that VM %s writes to %w, %s", name, ErrOther, of)
	case path != "":
		return path, false, nil
	}
	made = true
	if path, err = s.Scratch(name, digest, size); err == nil {
		kept := strings.TrimSuffix(path, making)
		path, err = kept, os.Rename(path, kept)
	}
	return path, made, err
}

// Scratch makes a disk that is not kept: whoever has opened it removes it.
func (s *Store) Scratch(name, digest string, size int64) (path string, err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", err
	}
	path = filepath.Join(s.dir, name+"@"+digest+making)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return "", err
	}
	return path, vm.NewRootDisk(path, size)
}

// Remove removes a VM's disk, and reports whether there was one.
func (s *Store) Remove(name string) (bool, error) {
	if !vmname.Valid(name) {
		return false, nil
	}
	path, _, err := s.find(name)
	if err != nil || path == "" {
		return false, err
	}
	return true, os.Remove(path)
}

// The files of a directory for what is written.
const (
	digestFile = "image" // the digest of the image that it lies over
	layerDir   = "layer" // vm.ImageRoot.Dir
)

// TakeDir makes a directory ready for what is written over the image of a digest, and returns what vm.ImageRoot.Dir is
// then. It need not be there; else it is one that was made so, or empty. It is for its owner alone then. The error may be ErrOther or vm.ErrNeedsRoot.
func TakeDir(dir, digest string) (string, error) {
	layer := filepath.Join(dir, layerDir)
	if os.Geteuid() != 0 { // said before anything is made
		return "", vm.ErrNeedsRoot
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	of, err := os.ReadFile(filepath.Join(dir, digestFile))
	switch {
	case err == nil && string(of) != digest+"\n":
		return "", fmt.Errorf("what is in %s %w, %s", dir, ErrOther, strings.TrimSpace(string(of)))
	case err == nil:
		return layer, os.MkdirAll(layer, 0o755) // who began may have been killed
	case !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	files, err := os.ReadDir(dir)
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("%s is not empty, and has nothing that a VM has written to its root", dir)
	}
	if err != nil {
		return "", err
	}
	// A guest makes programs there that run as root, whoever starts them: other users of the host do not get there.
	if err := os.Chmod(dir, 0o700); err != nil {
		return "", err
	}
	image := filepath.Join(dir, digestFile)
	if err := os.WriteFile(image, []byte(digest+"\n"), 0o644); err != nil {
		return "", errors.Join(err, os.Remove(image))
	}
	return layer, os.Mkdir(layer, 0o755)
}
