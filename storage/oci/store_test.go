package oci

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func names(t *testing.T, s *Store) (out []string) {
	t.Helper()
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		out = append(out, ShortName(i.Name))
	}
	return out
}

// TestIndex: names come and go, and what nothing needs goes with the last.
func TestIndex(t *testing.T) {
	s, ctx := newStore(t, Limits{}), t.Context()
	base := layerOf(t, text("base", noise(5000)))
	for n, i := range map[string]v1.Image{"a": imageOf(t, base, layerOf(t, text("a", "1"))), "b": imageOf(t, base, layerOf(t, text("b", "2")))} {
		if _, err := s.add(ctx, memory{Image: i}, "docker.io/library/"+n+":1", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Tag(ctx, "a:1", "x/other"); err != nil {
		t.Fatal(err)
	}
	a, err := s.Get("a:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"x/other", a.Digest.String(), a.ID().String(), a.ID().Hex[:12]} {
		if i, err := s.Get(ref); err != nil || i.Digest != a.Digest {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"a", "c:1", "0", "zzzz"} {
		if _, err := s.Get(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if freed, err := s.Prune(ctx); freed != 0 || err != nil {
		t.Errorf("freed %d of what is needed: %v", freed, err)
	}
	if r, err := s.Remove(ctx, "a:1"); err != nil || r.Digest != "" || !slices.Equal(r.Names, []string{"docker.io/library/a:1"}) {
		t.Errorf("%+v, %v", r, err)
	}
	before := len(contentsOf(t, s.dir))
	if r, err := s.Remove(ctx, a.ID().Hex[:12]); err != nil || r.Digest != a.Digest.String() {
		t.Errorf("%+v, %v", r, err)
	}
	if freed, err := s.Prune(ctx); freed == 0 || err != nil {
		t.Errorf("freed %d: %v", freed, err)
	}
	if after := len(contentsOf(t, s.dir)); before-after != 6 { // blob, data and tree of a layer; metadata, manifest and configuration
		t.Errorf("%d files before, %d after", before, after)
	}
	b, err := s.Get("b:1")
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, fileSystem(t, b)); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if layers, err := b.Layers(); err != nil || len(layers) != 2 || layers[0].Unpacked < 5000 || layers[0].Packed < 5000 {
		t.Errorf("%+v, %v", layers, err)
	}
}

// TestLoad takes images from files, of each form.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	image := imageOf(t, layerOf(t, text("a", noise(5000))), layerOf(t, text("b", "2")))
	want := []string{"a = " + noise(5000), "b = 2"}
	path, err := layout.Write(filepath.Join(dir, "Some Layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{refName: "v7"})); err != nil {
		t.Fatal(err)
	}
	two, err := layout.Write(filepath.Join(dir, "two"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"a", "b"} {
		if err := two.AppendImage(image, layout.WithAnnotations(map[string]string{refName: tag})); err != nil {
			t.Fatal(err)
		}
	}
	docker := filepath.Join(dir, "docker.tar")
	tag, _ := name.NewTag("team/app:3")
	if err := tarball.WriteToFile(docker, tag, image); err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(docker)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(plain)
	z.Close()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for file, c := range map[string]struct{ name, want string }{
		string(path):                        {"", "some-layout:v7"},
		docker:                              {"", "team/app:3"},
		string(two):                         {"one", ""},
		write("docker.tar.gz", b.Bytes()):   {"mine", "mine:latest"},
		write("cut.tar", plain[:2000]):      {"", ""},
		write("text", []byte("no archive")): {"", ""},
		write("empty", nil):                 {"", ""},
		write("other.tar", archiveOf(t, text("a", "1"))):                                 {"", ""},
		write("no.tar", archiveOf(t, text("manifest.json", "[]"))):                       {"", ""},
		write("hole.tar", archiveOf(t, text("manifest.json", `[{"Config":"../../x"}]`))): {"", ""},
	} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s := newStore(t, Limits{})
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := s.Load(t.Context(), f, c.name, nil)
			if c.want == "" {
				if err == nil || strings.Contains(err.Error(), "\n") {
					t.Error(err)
				}
				return
			}
			if err != nil || len(got) != 1 || ShortName(got[0].Name) != c.want {
				t.Fatalf("%+v, %v", got, err)
			}
			if got := tree(t, fileSystem(t, got[0])); !slices.Equal(got, want) {
				t.Errorf("%.200q", got)
			}
		})
	}
}

// TestTogether has many pull, remove and clean up at once: what has a name stays whole.
func TestTogether(t *testing.T) {
	s := newStore(t, Limits{})
	base := layerOf(t, text("base", noise(50000)))
	var g sync.WaitGroup
	for i := range 8 {
		image := imageOf(t, base, layerOf(t, text("n", strings.Repeat("x", i%4))))
		whole := "docker.io/library/n:" + string(rune('a'+i))
		g.Go(func() {
			other, err := Open(s.dir, Limits{})
			if err != nil {
				t.Error(err)
				return
			}
			for range 5 {
				if _, err := other.add(t.Context(), memory{Image: image}, whole, nil); err != nil {
					t.Error(err)
				}
				if i%2 == 1 {
					if _, err := other.Remove(t.Context(), whole); err != nil {
						t.Error(err)
					}
				}
				if _, err := other.Tidy(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	if _, err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) != 4 {
		t.Errorf("%q", got)
	}
	for _, n := range names(t, s) {
		i, err := s.Get(n)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree(t, fileSystem(t, i)); len(got) != 2 {
			t.Errorf("%s: %d files", n, len(got))
		}
	}
}

// TestInterrupted: a pull that is ended leaves no image, and no harm.
func TestInterrupted(t *testing.T) {
	h := newHub(t)
	h.push(t, "x", imageOf(t, layerOf(t, text("a", noise(1<<20))), layerOf(t, text("b", noise(1<<20)))))
	s := newStore(t, Limits{})
	for i := int64(1); i < 6; i++ {
		ctx, stop := context.WithCancel(t.Context())
		_, err := s.Pull(ctx, h.host+"/x", Registry{}, func(_ v1.Hash, done, total int64) {
			if done*6/total >= i {
				stop()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%d: %v", i, err)
		}
		if got := names(t, s); len(got) > 0 {
			t.Errorf("%q", got)
		}
		stop()
	}
	if _, err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := contentsOf(t, s.dir); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	if _, err := s.Pull(t.Context(), h.host+"/x", Registry{}, nil); err != nil {
		t.Error(err)
	}
}
