package oci

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// hub is a registry that a test can disturb.
type hub struct {
	host    string
	handler http.Handler
	mu      sync.Mutex
	gets    []string // blobs and manifests that were asked for
	cut     int      // connections to end in the middle of a blob
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		blob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		if blob {
			h.gets = append(h.gets, r.URL.Path[strings.LastIndex(r.URL.Path, ":")+1:]+" "+r.Header.Get("Range"))
		}
		cut := blob && h.cut > 0
		if cut {
			h.cut--
		}
		h.mu.Unlock()
		if cut {
			w = &cutWriter{ResponseWriter: w}
		}
		inner.ServeHTTP(w, r)
	})
	server := httptest.NewServer(h.handler)
	t.Cleanup(server.Close)
	h.host = strings.TrimPrefix(server.URL, "http://")
	return h
}

// cutWriter breaks a connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	sent int
}

// Write implements io.Writer.
func (c *cutWriter) Write(b []byte) (int, error) {
	if c.sent += len(b); c.sent > 40000 {
		c.ResponseWriter.Write(b[:len(b)/2])
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

func (h *hub) push(t *testing.T, ref string, image v1.Image) {
	t.Helper()
	r, err := name.ParseReference(h.host + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, image); err != nil {
		t.Fatal(err)
	}
}

// noise is a text that does not become shorter.
func noise(n int) string {
	b, x := make([]byte, n), uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

// TestPull fetches images by their names.
func TestPull(t *testing.T) {
	h := newHub(t)
	base := layerOf(t, text("base", noise(5000)))
	one, two := imageOf(t, base, layerOf(t, text("one", "1"))), imageOf(t, base, layerOf(t, text("two", "2")), layerOf(t, text("two", "2")))
	h.push(t, "team/one:v1", one)
	h.push(t, "two", two)
	s := newStore(t, Limits{})
	for ref, want := range map[string][]string{h.host + "/team/one:v1": {"base = " + noise(5000), "one = 1"}, h.host + "/two": {"base = " + noise(5000), "two = 2"}} {
		image, err := s.Pull(t.Context(), ref, Registry{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree(t, fileSystem(t, image)); !slices.Equal(got, want) {
			t.Errorf("%s: %.100q", ref, got)
		}
		if image.Config.Config.Env[0] != "A=b" {
			t.Errorf("%s: %+v", ref, image.Config)
		}
	}
	asked := len(h.gets)
	if _, err := s.Pull(t.Context(), h.host+"/two:latest", Registry{}, nil); err != nil || len(h.gets) != asked+1 { // its configuration
		t.Errorf("a second time: %q, %v", h.gets[asked:], err)
	}
	d, _ := one.Digest()
	if _, err := s.Pull(t.Context(), h.host+"/team/one@"+d.String(), Registry{}, nil); err != nil {
		t.Error(err)
	}
	for _, ref := range []string{h.host + "/none", h.host + "/two:none"} {
		if _, err := s.Pull(t.Context(), ref, Registry{}, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := s.Pull(t.Context(), "No Name", Registry{}, nil); err == nil {
		t.Error("a name that is none was taken")
	}
}

// TestPullIndex chooses the image for this machine.
func TestPullIndex(t *testing.T) {
	h := newHub(t)
	here, there := imageOf(t, layerOf(t, text("here", ""))), imageOf(t, layerOf(t, text("there", "")))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: here, Descriptor: v1.Descriptor{Platform: platform}})
	none := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	for ref, index := range map[string]v1.ImageIndex{"both": index, "none": none} {
		r, _ := name.ParseReference(h.host + "/" + ref)
		if err := remote.WriteIndex(r, index); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t, Limits{})
	image, err := s.Pull(t.Context(), h.host+"/both", Registry{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, fileSystem(t, image)); !slices.Equal(got, []string{"here = "}) {
		t.Errorf("%q", got)
	}
	if _, err := s.Pull(t.Context(), h.host+"/none", Registry{}, nil); err == nil || !strings.Contains(err.Error(), "linux/arm64") || strings.Contains(err.Error(), "unknown") {
		t.Error(err)
	}
}

// TestPullBroken: connections that break go on where they were, in one pull and in the next.
func TestPullBroken(t *testing.T) {
	h := newHub(t)
	h.push(t, "x", imageOf(t, layerOf(t, text("a", noise(100000)))))
	s := newStore(t, Limits{})
	h.cut = maxFails // the configuration and then the layer, each time after some of it
	image, err := s.Pull(t.Context(), h.host+"/x", Registry{}, nil)
	if err != nil {
		h.cut = 0
		if image, err = s.Pull(t.Context(), h.host+"/x", Registry{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := tree(t, fileSystem(t, image)); !slices.Equal(got, []string{"a = " + noise(100000)}) {
		t.Error("the contents are others")
	}
	if !slices.ContainsFunc(h.gets, func(s string) bool { return strings.Contains(s, "bytes=") }) {
		t.Errorf("nothing went on where it was: %q", h.gets)
	}
}

// TestNames: what users write, and what they are shown.
func TestNames(t *testing.T) {
	for ref, want := range map[string][2]string{
		"debian":                  {"docker.io/library/debian:latest", "debian:latest"},
		"debian:12":               {"docker.io/library/debian:12", "debian:12"},
		"team/app":                {"docker.io/team/app:latest", "team/app:latest"},
		"localhost:5000/a/b/c:v1": {"localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1"},
		"docker.io/debian:12":     {"docker.io/library/debian:12", "debian:12"},
		"Upper":                   {}, "": {}, "a:b:c": {},
	} {
		whole, err := ParseName(ref)
		if whole != want[0] || (err == nil) != (want[0] != "") || ShortName(whole) != want[1] {
			t.Errorf("%q: %q, %q, %v", ref, whole, ShortName(whole), err)
		}
	}
}
