package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// before is a registry that a function may answer for.
func before(t *testing.T, h *hub, answer func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answer(w, r.WithContext(ctx)) {
			h.handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(end)
	return strings.TrimPrefix(server.URL, "http://")
}

// TestHostileRegistry pulls from registries that would harm who does: each is an error of one short line,
// and nothing of the image is there.
func TestHostileRegistry(t *testing.T) {
	zeros := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}
	h := newHub(t)
	h.push(t, "x", imageOf(t, layerOf(t, text("a", noise(100000)))))
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request) bool
		want   string
	}{
		"endless manifest": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			zeros(w, r)
			return true
		}, ""},
		"endless blobs": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			zeros(w, r)
			return true
		}, ""},
		"no bytes": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, errSilent.Error()},
		"no answer": {func(_ http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			<-r.Context().Done()
			return true
		}, "timeout"},
		"to a file": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
			return true
		}, "file"},
		"in circles": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}, "redirects"},
		"another realm": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, "realm"},
		"a page": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusTeapot)
			io.WriteString(w, strings.Repeat("<p>a page\x1b[2J\n", 3000))
			return true
		}, "418"},
		"a type": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "text/"+strings.Repeat("x", 10000))
			io.WriteString(w, "{}")
			return true
		}, "not an image"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Limits{Bytes: 1 << 20})
			_, err := s.Pull(t.Context(), before(t, h, c.answer)+"/x", Registry{Silence: 50 * time.Millisecond}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v", err)
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
				t.Errorf("%d bytes: %.300q", len(err.Error()), err)
			}
			if all, err := s.List(); err != nil || len(all) > 0 {
				t.Errorf("%d images, %v", len(all), err)
			}
		})
	}
}

// TestRanges: what a registry sends is from where it says, or it is no good.
func TestRanges(t *testing.T) {
	h := newHub(t)
	image := imageOf(t, layerOf(t, text("a", noise(100000))))
	h.push(t, "x", image)
	m, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer := m.Layers[0]
	blob, _, err := (memory{Image: image}).blob(t.Context(), layer, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		says, from int
		ok         bool
	}{"as asked": {5000, 5000, true}, "more": {4000, 4000, true}, "less": {6000, 6000, false}, "another": {5000, 4000, false}} {
		t.Run(name, func(t *testing.T) {
			host := before(t, h, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") == "" {
					return false
				}
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", c.says, len(b)-1, len(b)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(b[c.from:])
				return true
			})
			s := newStore(t, Limits{})
			if err := os.WriteFile(s.hashed(partialsDir, layer.Digest), b[:5000], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Pull(t.Context(), host+"/x", Registry{}, nil); (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestRetries: what a registry cannot answer at the moment is asked for again.
func TestRetries(t *testing.T) {
	h := newHub(t)
	h.push(t, "x", imageOf(t, layerOf(t, text("a", "1"))))
	var asked atomic.Int32
	host := before(t, h, func(w http.ResponseWriter, _ *http.Request) bool {
		bad := asked.Add(1)%2 == 1
		if bad {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return bad
	})
	if _, err := newStore(t, Limits{}).Pull(t.Context(), host+"/x", Registry{}, nil); err != nil {
		t.Error(err)
	}
}

// TestInsecure: who signs a registry's certificate matters, unless the user says otherwise.
func TestInsecure(t *testing.T) {
	h := newHub(t)
	h.push(t, "x", imageOf(t, layerOf(t, text("a", "1"))))
	server := httptest.NewTLSServer(h.handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "https://") + "/x"
	s := newStore(t, Limits{})
	if _, err := s.Pull(t.Context(), ref, Registry{}, nil); !errors.Is(err, ErrInsecure) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
	if _, err := s.Pull(t.Context(), ref, Registry{Insecure: true}, nil); err != nil {
		t.Error(err)
	}
}

// TestRedirected: a password is for the registry that it was given for.
func TestRedirected(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	h := newHub(t)
	h.push(t, "x", imageOf(t, layerOf(t, text("a", "1"))))
	var stolen atomic.Bool
	other := before(t, h, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			stolen.Store(true)
		}
		return false
	})
	host := before(t, h, func(w http.ResponseWriter, r *http.Request) bool {
		switch _, _, known := r.BasicAuth(); {
		case !known:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, "http://"+other+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	})
	if err := Login(t.Context(), host, "joe", "secret", Registry{}); err != nil {
		t.Fatal(err)
	}
	if _, err := newStore(t, Limits{}).Pull(t.Context(), host+"/x", Registry{}, nil); err != nil {
		t.Error(err)
	}
	if stolen.Load() {
		t.Error("another registry was told the password")
	}
}
