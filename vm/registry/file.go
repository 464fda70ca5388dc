package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmm/vm/api"
)

// The process of a VM writes to the VM's directory, and a guest may have got into it: what is there is read and written
// without following links, without waiting for who is at the other end of a pipe, and up to a bound.

// ErrNoFile is that of something in a VM's directory that is no regular file.
var ErrNoFile = errors.New("is no regular file: the VM's process may have been broken into")

// Open opens a file in a VM's directory as os.OpenFile does, for its owner alone where it is made. The error
// may be ErrNoFile.
func Open(path string, flag int) (*os.File, error) {
	fd, err := unix.Open(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) { // a link; a socket, or a pipe that nobody reads
		return nil, fmt.Errorf("%s %w", path, ErrNoFile)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s %w", path, ErrNoFile)
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// maxInfo bounds what is known of a VM, in bytes.
const maxInfo = 4 << 20

// unreadableError is the error for what is known of a VM where that is no description of one.
type unreadableError struct{ cause error }

// Error implements error.
func (e *unreadableError) Error() string {
	return fmt.Sprintf("what its process says of itself cannot be read (%v)", e.cause)
}

// Unwrap implements the interface of errors.Is.
func (e *unreadableError) Unwrap() error { return e.cause }

// readInfo reads what is known of a VM, whose name is that of its directory. The error may be an
// *unreadableError.
func readInfo(path string) (vm api.VM, err error) {
	f, err := Open(filepath.Join(path, infoFile), os.O_RDONLY)
	if errors.Is(err, ErrNoFile) {
		err = &unreadableError{err}
	}
	if err != nil {
		return vm, err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxInfo)).Decode(&vm); err != nil {
		return api.VM{}, &unreadableError{fmt.Errorf("%s: %w", f.Name(), err)}
	}
	vm.Name = filepath.Base(path)
	if vm.State != api.Exited && vm.State != api.Restarting {
		vm.State = api.Running
	}
	return vm, nil
}

// writeInfo writes the file in the place of the old one at once.
func writeInfo(path string, vm api.VM) error {
	b, err := json.Marshal(vm)
	if err != nil {
		return err
	}
	tmp := filepath.Join(path, infoFile+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := Open(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(path, infoFile))
}
