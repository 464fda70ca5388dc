package oci

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestPush sends an image to a registry, from which another store has it again.
func TestPush(t *testing.T) {
	h := newHub(t)
	s := newStore(t, Limits{})
	ref := h.host + "/team/x:1"
	image, err := s.add(t.Context(), memory{Image: imageOf(t, layerOf(t, text("a", noise(50000))), layerOf(t, text("b", "2")))}, ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	var done, total int64
	digest, err := s.Push(t.Context(), ref, Registry{}, func(d, n int64) { done, total = d, n })
	if err != nil || digest != image.Digest || done != total || total == 0 {
		t.Fatalf("%v, %d of %d, %v", digest, done, total, err)
	}
	again, err := newStore(t, Limits{}).Pull(t.Context(), ref, Registry{}, nil)
	if err != nil || again.Digest != image.Digest {
		t.Fatal(err)
	}
	if _, err := s.Push(t.Context(), "none", Registry{}, func(int64, int64) {}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// TestLogin checks a password with a registry, keeps it, and uses it.
func TestLogin(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	inner := newHub(t)
	inner.push(t, "x", imageOf(t, layerOf(t, text("a", "1"))))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "joe" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	s := newStore(t, Limits{})
	if _, err := s.Pull(t.Context(), host+"/x", Registry{}, nil); err == nil || !strings.Contains(err.Error(), "a login is needed") {
		t.Error(err)
	}
	if err := Login(t.Context(), host, "joe", "wrong", Registry{}); err == nil || !strings.Contains(err.Error(), "wrong user name or password") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
		t.Error("a wrong password was kept")
	}
	if err := Login(t.Context(), host, "joe", "secret", Registry{}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "config.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file of passwords: %v, %v", st.Mode(), err)
	}
	if _, err := s.Pull(t.Context(), host+"/x", Registry{}, func(v1.Hash, int64, int64) {}); err != nil {
		t.Error(err)
	}
	for _, want := range []bool{true, false} {
		if known, err := Logout(host, Registry{}); known != want || err != nil {
			t.Errorf("%v, %v", known, err)
		}
	}
	if err := Login(t.Context(), "no host/x", "a", "b", Registry{}); err == nil {
		t.Error("a registry that is none was taken")
	}
}
