package oci

import (
	"archive/tar"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vmm/internal/tarfile"
)

// TestCommit puts a layer on an image.
func TestCommit(t *testing.T) {
	s, ctx := newStore(t, Limits{Bytes: 1 << 20}), t.Context()
	base, err := s.add(ctx, memory{Image: imageOf(t, layerOf(t, text("old", "1"), text("gone", "2")))}, "docker.io/library/base:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	archive := archiveOf(t, text(".wh.gone", ""), text("new", "3"))
	write := func(w io.Writer) error {
		_, err := w.Write(archive)
		return err
	}
	var changes []Change
	for _, text := range []string{"ENTRYPOINT [\"/e\"]", "env A=c B='d e'", "EXPOSE 80"} {
		c, err := ParseChange(text)
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, c)
	}
	made, err := s.Commit(ctx, base, Commit{Name: "made", Author: "Ann", Message: "why", CreatedBy: "test", Changes: changes}, write)
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, fileSystem(t, made)); len(got) != 2 || !slices.Contains(got, "new = 3") || !slices.Contains(got, "old = 1") {
		t.Errorf("%q", got)
	}
	c := made.Config.Config
	if !slices.Equal(c.Env, []string{"A=c", "B=d e"}) || c.Cmd != nil || !slices.Equal(c.Entrypoint, []string{"/e"}) || len(c.ExposedPorts) != 1 {
		t.Errorf("%+v", c)
	}
	if h := made.Config.History[len(made.Config.History)-1]; h.Author != "Ann" || h.Comment != "why" || h.CreatedBy != "test" || h.EmptyLayer {
		t.Errorf("%+v", h)
	}
	if again, err := s.Get("base:1"); err != nil || !slices.Equal(again.Config.Config.Env, []string{"A=b"}) {
		t.Errorf("the base is another now: %v", err)
	}
	for name, layer := range map[string]func(io.Writer) error{
		"too large": func(w io.Writer) error {
			_, err := io.Copy(w, io.LimitReader(zeros{}, 2<<20))
			return err
		},
		"hung up": func(io.Writer) error { return io.ErrUnexpectedEOF },
		"no layer": func(w io.Writer) error {
			_, err := io.WriteString(w, strings.Repeat("x", 2000))
			return err
		},
		"outside": func(w io.Writer) error {
			_, err := w.Write(archiveOf(t, text("../x", "")))
			return err
		},
	} {
		before := contentsOf(t, s.dir)
		if _, err := s.Commit(ctx, base, Commit{Name: "bad"}, layer); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := s.Get("bad"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if after := contentsOf(t, s.dir); !slices.Equal(before, after) {
			t.Errorf("%s: %q before, %q after", name, before, after)
		}
	}
}

// TestCommitLimits: a guest that sends without end is stopped while it sends, and nothing is left
// of what has come.
func TestCommitLimits(t *testing.T) {
	s, ctx := newStore(t, Limits{Bytes: 1 << 30, Entries: 100, Names: 100 << 10}), t.Context()
	base, err := s.add(ctx, memory{Image: imageOf(t, layerOf(t, text("old", "1")))}, "docker.io/library/base:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	errUnstopped := errors.New("it was not stopped")
	for name, header := range map[string]tar.Header{
		"files":      {},
		"names":      {Linkname: strings.Repeat("n", 3000), Typeflag: tar.TypeSymlink},
		"attributes": {PAXRecords: map[string]string{tarfile.XattrRecord + "user.x": strings.Repeat("v", 3000)}},
		"contents":   {Size: 1 << 40},
	} {
		before := contentsOf(t, s.dir)
		_, err := s.Commit(ctx, base, Commit{Name: "bad"}, func(w io.Writer) error {
			to := tar.NewWriter(w)
			for n := range 10000 {
				h := header
				h.Format, h.Name = tar.FormatPAX, strconv.Itoa(n)
				if err := to.WriteHeader(&h); err != nil {
					return err
				}
				if _, err := io.Copy(to, io.LimitReader(zeros{}, min(h.Size, 1<<20))); err != nil {
					return err
				}
			}
			return errUnstopped
		})
		if !errors.Is(err, ErrLimit) || errors.Is(err, errUnstopped) {
			t.Errorf("%s: %v", name, err)
		}
		if after := contentsOf(t, s.dir); !slices.Equal(before, after) {
			t.Errorf("%s: %q before, %q after", name, before, after)
		}
	}
}

type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestCommitNameless makes images without a name, which get one, or go.
func TestCommitNameless(t *testing.T) {
	s, ctx := newStore(t, Limits{}), t.Context()
	base, err := s.add(ctx, memory{Image: imageOf(t, layerOf(t, text("old", "1")))}, "docker.io/library/base:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	var made []*Image
	for _, body := range []string{"a", "b"} {
		archive := archiveOf(t, text("new", body))
		i, err := s.Commit(ctx, base, Commit{}, func(w io.Writer) error {
			_, err := w.Write(archive)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, i)
	}
	if got := names(t, s); len(got) != 3 {
		t.Errorf("%q", got)
	}
	if err := s.Tag(ctx, made[0].ID().String(), "named"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) != 3 || !slices.Contains(got, "named:latest") {
		t.Errorf("after tag: %q", got)
	}
	if r, err := s.Remove(ctx, made[1].ID().String()); err != nil || len(r.Names) != 0 || r.Digest != made[1].Digest.String() {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestChanges reads instructions.
func TestChanges(t *testing.T) {
	for _, text := range []string{"", "CMD", "RUN x", "EXPOSE 0", "EXPOSE 80/x", "EXPOSE 99999", "ENV A=1 B", `ENV A="1`, "LABEL =x", "ONBUILD CMD x"} {
		if _, err := ParseChange(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
	var c v1.Config
	for _, text := range []string{`CMD echo $A`, `WORKDIR /a`, `WORKDIR b`, `VOLUME ["/x", "/y z"]`, `USER 1:2`, `STOPSIGNAL SIGINT`, `LABEL a b c`, `ENV A b=c`, `EXPOSE 1 2/udp`} {
		change, err := ParseChange(text)
		if err == nil {
			err = change.apply(&c)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(c.Cmd, []string{"/bin/sh", "-c", "echo $A"}) || c.WorkingDir != "/a/b" || len(c.Volumes) != 2 || c.User != "1:2" || c.StopSignal != "SIGINT" ||
		c.Labels["a"] != "b c" || !slices.Equal(c.Env, []string{"A=b=c"}) || len(c.ExposedPorts) != 2 {
		t.Errorf("%+v", c)
	}
}
