package unixsocket

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	for name, listen := range map[string]func(path string) (io.Closer, error){
		"stream": func(path string) (io.Closer, error) {
			l, err := Listen(path)
			if err != nil {
				return nil, err
			}
			l.SetUnlinkOnClose(false)
			return l, nil
		},
		"datagrams": func(path string) (io.Closer, error) { return ListenPacket(path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			l, err := listen(path)
			if err != nil {
				t.Fatal(err)
			}
			if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|mode {
				t.Errorf("%v, %v", st.Mode(), err)
			}
			if _, err := listen(path); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("a second one: %v", err)
			}
			l.Close()
			if l, err = listen(path); err != nil {
				t.Fatalf("where one was left behind: %v", err)
			}
			l.Close()

			// What is no socket stays.
			if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if _, err := listen(path); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("on a file: %v", err)
			}
			if b, err := os.ReadFile(path); string(b) != "mine" {
				t.Errorf("the file holds %q, %v", b, err)
			}
		})
	}
}
