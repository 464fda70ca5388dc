package lan

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vmm/network/ether"
)

// turnEvery is how often a member looks whether the gateway has gone.
const turnEvery = 500 * time.Millisecond

// Share connects the one gateway of a switch: open is called by the first
// member that shares one, at once, and by another when that is gone; failed is
// told if it cannot then.
func (s *Switch) Share(dir string, open func() (ether.Link, error), failed func(error)) error {
	lock, err := os.OpenFile(filepath.Join(dir, "gateway.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	free := func() bool { return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }
	take := func() error {
		link, err := open()
		if err != nil {
			lock.Close()
			return err
		}
		s.Connect(link)
		if !s.own(lock) { // the switch is closed by now
			lock.Close()
		}
		return nil
	}
	if free() {
		return take()
	}
	stop := make(chanCloser)
	if !s.own(stop) {
		return lock.Close()
	}
	s.group.Go(func() {
		for {
			select {
			case <-stop:
				lock.Close()
				return
			case <-time.After(turnEvery):
			}
			if !free() {
				continue
			}
			if err := take(); err != nil {
				failed(err)
			}
			return
		}
	})
	return nil
}
