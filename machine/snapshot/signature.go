package snapshot

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/internal/paths"
)

// A snapshot says which files of the host its VM opens, so one that somebody else has
// made is somebody else's command line. Whoever saves a VM signs what the snapshot says
// of itself with a key that is in the user's own directory; the checksums in there are
// of all other files but the memory, which is the guest's.

// signatureFile has the HMAC-SHA-256 of ManifestFile, in hexadecimal.
const signatureFile = "snapshot.hmac"

// keySize is that of the key, in bytes.
const keySize = 32

// Signed reports whether this user has saved the snapshot, and nobody had changed it when it was opened.
func (s *Snapshot) Signed() bool {
	key, err := readKey()
	if err != nil {
		return false
	}
	got, err := readFile(s.Path(signatureFile))
	return err == nil && hmac.Equal(got, mac(key, s.text))
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return []byte(hex.EncodeToString(h.Sum(nil)) + "\n")
}

// signedStamp is the text of stampFile. It is signed too: who has changed a file and notes how that looks now would have nobody
// compare its checksum. With no key, as for the cache's own, it is not.
func signedStamp(key []byte, look string) []byte {
	if key == nil {
		return []byte(look)
	}
	return slices.Concat([]byte(look), mac(key, []byte("stamp\n"+look)))
}

// sign signs the snapshot in a directory. Where the user has no directory for a key, it
// stays without a signature.
func sign(dir string) error {
	key, err := userKey()
	if errors.Is(err, paths.ErrNoHome) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the key that snapshots are signed with: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, signatureFile), mac(key, text), 0o600)
}

// keyPath is where the user's key is.
func keyPath() (string, error) {
	data, err := paths.Data()
	if err != nil {
		return "", err
	}
	return filepath.Join(data, "snapshot.key"), nil
}

func readKey() ([]byte, error) {
	path, err := keyPath()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: remove it, and snapshots that were signed with it have to be trusted anew", path)
	}
	text := make([]byte, 2*keySize)
	if _, err := f.ReadAt(text, 0); err != nil {
		return nil, fmt.Errorf("%s is no key: %w", path, err)
	}
	return hex.DecodeString(string(text))
}

// userKey reads the key, or makes it. Of several processes that make it at once, all get
// the one that was there first.
func userKey() ([]byte, error) {
	key, err := readKey()
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	path, err := keyPath()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	fresh := make([]byte, keySize)
	rand.Read(fresh)
	f, err := os.CreateTemp(filepath.Dir(path), ".key-") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = strings.NewReader(hex.EncodeToString(fresh) + "\n").WriteTo(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readKey()
}
