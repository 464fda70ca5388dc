// Package hosttools takes programs of the host into a test's guest.
package hosttools

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	guestimages "vmm/guest-images"
)

// Loader and Libraries are where Archive puts what its programs in /host/bin
// need: they are run as "Loader --library-path Libraries /host/bin/NAME".
const (
	Loader    = "/host/lib/ld.so"
	Libraries = "/host/lib"
)

var libraryLine = regexp.MustCompile(`(/\S+) \(0x`)

// Archive makes an initial RAM disk of programs and their libraries.
func Archive(names ...string) ([]byte, error) {
	files := map[string]string{} // where they go, and come from
	for _, n := range names {
		path, err := exec.LookPath(n)
		if err != nil {
			return nil, err
		}
		files["host/bin/"+n] = path
		out, err := exec.Command("ldd", path).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w: %s", path, err, out)
		}
		for _, m := range libraryLine.FindAllSubmatch(out, -1) {
			to := "host/lib/" + filepath.Base(string(m[1]))
			if strings.HasPrefix(to, "host/lib/ld-linux") {
				to = strings.TrimPrefix(Loader, "/")
			}
			files[to] = string(m[1])
		}
	}
	var records []cpio.Record
	for to, from := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(to, string(b), 0o755))
	}
	return guestimages.Archive(records...)
}
