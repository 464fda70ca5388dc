package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	guestimages "vmm/guest-images"
)

// The images of TestComparePull: this host's programs and libraries.
const (
	imageFrom   = "/usr/lib"
	imageBytes  = 200 << 20
	imageLayers = 60
	imageRounds = 3
)

// layerFrom makes a layer of an archive.
func layerFrom(t *testing.T, archive []byte) v1.Layer {
	t.Helper()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// archives are this host's files, in so many archives of one size; the first has busybox too.
func archives(t *testing.T, n int) [][]byte {
	t.Helper()
	busybox, err := (&guestimages.Builder{Log: os.Stderr}).Busybox(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, body []byte) error {
		err := w.WriteHeader(&tar.Header{Format: tar.FormatPAX, Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))})
		if err == nil {
			_, err = w.Write(body)
		}
		return err
	}
	if err := put("bin/true", busybox); err != nil {
		t.Fatal(err)
	}
	left := imageBytes
	err = filepath.WalkDir(imageFrom, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if left -= len(body); left < 0 {
			return fs.SkipAll
		}
		if b.Len() > imageBytes/n && len(out) < n-1 {
			err = w.Close()
			out = append(out, bytes.Clone(b.Bytes()))
			b.Reset()
			w = tar.NewWriter(&b)
		}
		return errors.Join(err, put(path[1:], body))
	})
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return append(out, b.Bytes())
}

// pushImage puts an image into a registry.
func pushImage(t *testing.T, ref string, archives ...[]byte) {
	t.Helper()
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, a := range archives {
		var err error
		if image, err = mutate.AppendLayers(image, layerFrom(t, a)); err != nil {
			t.Fatal(err)
		}
	}
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	if image, err = mutate.ConfigFile(image, file); err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, image); err != nil {
		t.Fatal(err)
	}
}

// TestComparePull measures how long an image of 60 layers takes to come from a registry and be
// ready for use, beside other programs, and a VM's start from it beside one from a single layer.
func TestComparePull(t *testing.T) {
	if !*compare {
		t.Skip("make bench runs this")
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	parts := archives(t, imageLayers)
	pushImage(t, host+"/many:1", parts...)
	pushImage(t, host+"/one:1", archives(t, 1)...)
	vmm, dir := buildVMM(t), t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data"))
	fresh := func(commands ...[]string) float64 {
		if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
			t.Fatal(err)
		}
		total := 0.0
		for _, c := range commands {
			total += timed(t, c[0], c[1:]...).Seconds()
		}
		return total
	}
	at := func(parts ...string) string { return filepath.Join(append([]string{dir, "data"}, parts...)...) }
	ours := []string{vmm, "pull", "-q", host + "/many:1"}
	for _, peer := range []struct {
		what     string
		tools    []string
		commands [][]string
	}{
		{"pull, 60 layers / skopeo and umoci", []string{"skopeo", "umoci"}, [][]string{
			{"mkdir", "-p", at()},
			{"skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "docker://" + host + "/many:1", "oci:" + at("layout") + ":x"},
			{"umoci", "unpack", "--image", at("layout") + ":x", at("bundle")}}},
		// In a mount namespace of its own, with which goes what it mounts.
		{"pull, 60 layers / podman", []string{"podman", "unshare"}, [][]string{
			{"unshare", "-m", "podman", "--root", at("podman"), "--runroot", at("run"), "pull", "-q", "--tls-verify=false", host + "/many:1"}}},
	} {
		if !installed(t, peer.tools...) {
			continue
		}
		var a, b []float64
		for range imageRounds {
			a, b = append(a, fresh(ours)), append(b, fresh(peer.commands...))
		}
		ratio(t, peer.what, a, b, "s")
	}
	fresh(ours, []string{vmm, "pull", "-q", host + "/one:1"})
	var many, one []float64
	for range imageRounds {
		many = append(many, timed(t, vmm, "run", "--image", host+"/many:1", "--", "/bin/true").Seconds())
		one = append(one, timed(t, vmm, "run", "--image", host+"/one:1", "--", "/bin/true").Seconds())
	}
	ratio(t, "start, 60 layers / 1 layer", many, one, "s")
}

// installed reports whether all of some programs are there.
func installed(t *testing.T, tools ...string) bool {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Logf("%s is not installed", tool)
			return false
		}
	}
	return true
}
