package oci

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// killedEnv has the child of TestKilled do this work, from there, in this store, in this round.
const killedEnv = "VMM_TEST_KILLED"

const (
	killedRounds = 50
	killedImages = 3 // x:0, x:1 and so on, which have a layer in common
)

// killedWork is work that is killed.
type killedWork struct {
	// before has something for it to do, and is not killed.
	before func(ctx context.Context, s *Store, from string, round int) error
	// do is killed at any time.
	do func(ctx context.Context, s *Store, from string, round int) error
	// files are those of the store when all of the work was done in all rounds.
	files int
}

// What a store has for each of its layers, as a blob and unpacked, and for each of its images.
const filesPerLayer, filesPerImage = 3, 3

var killedWorks = map[string]killedWork{
	"pull": {before: sometimesNone, files: 4*filesPerLayer + killedImages*filesPerImage, do: func(ctx context.Context, s *Store, from string, round int) error {
		_, err := s.Pull(ctx, path.Join(from, killedName(round)), Registry{}, nil)
		return err
	}},
	"load": {before: sometimesNone, do: loadKilled, files: 4*filesPerLayer + killedImages*filesPerImage},
	"commit": {files: 5*filesPerLayer + (1+killedImages)*filesPerImage,
		before: func(ctx context.Context, s *Store, from string, round int) error {
			if err := sometimesNone(ctx, s, from, round); err != nil {
				return err
			}
			return loadKilled(ctx, s, from, 0)
		},
		do: func(ctx context.Context, s *Store, _ string, round int) error {
			base, err := s.Get(killedName(0))
			if err != nil {
				return err
			}
			name := strings.Replace(killedName(round), "x", "made", 1)
			_, err = s.Commit(ctx, base, Commit{Name: name}, func(w io.Writer) error {
				_, err := w.Write(archiveOf(&testing.T{}, text("new", noise(100000*(round%killedImages+1)))))
				return err
			})
			return err
		}},
	"prune": {files: 2*filesPerLayer + filesPerImage,
		before: func(ctx context.Context, s *Store, from string, _ int) error {
			for i := range killedImages {
				if err := loadKilled(ctx, s, from, i); err != nil {
					return err
				}
			}
			for i := range killedImages - 1 {
				if _, err := s.Remove(ctx, killedName(i+1)); err != nil {
					return err
				}
			}
			return nil
		},
		do: func(ctx context.Context, s *Store, _ string, _ int) error {
			_, err := s.Prune(ctx)
			return err
		}},
}

func killedName(round int) string { return fmt.Sprint("x:", round%killedImages) }

// loadKilled loads an image from a directory of archives.
func loadKilled(ctx context.Context, s *Store, from string, round int) error {
	f, err := os.Open(filepath.Join(from, killedName(round)))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.Load(ctx, f, killedName(round), nil)
	return err
}

// sometimesNone takes an image away, and in some rounds with it all that no other image needs.
func sometimesNone(ctx context.Context, s *Store, _ string, round int) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	for _, i := range all {
		if path.Base(i.Name) == killedName(round) {
			if _, err := s.Remove(ctx, i.Name); err != nil {
				return err
			}
		}
	}
	if round%2 == 0 {
		_, err = s.Prune(ctx)
	}
	return err
}

// TestKilled kills a process that works in a store, at any time: the store stays whole.
func TestKilled(t *testing.T) {
	if work := os.Getenv(killedEnv); work != "" {
		workUntilKilled(t, killedWorks[work])
		return
	}
	h, archives, from := newHub(t), t.TempDir(), newStore(t, Limits{})
	base, want := layerOf(t, text("base", noise(300000))), map[string][]string{}
	for i := range killedImages {
		image := imageOf(t, base, layerOf(t, text("own", noise(100000*(i+1)))))
		h.push(t, killedName(i), image)
		if _, err := from.add(t.Context(), memory{Image: image}, "docker.io/library/"+killedName(i), nil); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(archives, killedName(i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := from.Save(t.Context(), f, []string{killedName(i)}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		want[killedName(i)] = []string{"base = " + noise(300000), "own = " + noise(100000*(i+1))}
		want[fmt.Sprint("made:", i)] = []string{"base = " + noise(300000), "new = " + noise(100000*(i+1)), "own = " + noise(100000)}
	}
	whole := func(t *testing.T, s *Store) {
		t.Helper()
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			if _, err := i.Layers(); err != nil {
				t.Fatal(err)
			}
			if got := tree(t, fileSystem(t, i)); !slices.Equal(got, want[path.Base(i.Name)]) {
				t.Fatalf("%s: the contents are others, of %d files", i.Name, len(got))
			}
		}
	}
	for name, w := range killedWorks {
		t.Run(name, func(t *testing.T) {
			s, source := newStore(t, Limits{}), archives
			if name == "pull" {
				source = h.host
			}
			var takes time.Duration // which only says when it is killed
			all := func() {
				for i := range killedImages {
					if err := w.before(t.Context(), s, source, i); err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					if err := w.do(t.Context(), s, source, i); err != nil {
						t.Fatal(err)
					}
					takes = time.Since(start)
				}
			}
			all()
			random := rand.New(rand.NewPCG(1, 2))
			killed := 0
			for round := range killedRounds {
				if killAt(t, name, source, s.dir, round, time.Duration(random.Float64()*1.2*float64(takes))) {
					killed++
				}
				whole(t, s)
			}
			t.Logf("%d of %d were killed at work", killed, killedRounds)
			all()
			whole(t, s)
			if _, err := s.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := contentsOf(t, s.dir); len(left) != w.files {
				t.Errorf("%d files are left, not %d: %q", len(left), w.files, left)
			}
			if left, err := filepath.Glob(filepath.Join(s.dir, makingName+"*")); err != nil || len(left) > 0 {
				t.Errorf("%q are left, %v", left, err)
			}
		})
	}
}

// killAt starts the child, and kills it so long after its work has begun. It reports whether that
// had not ended.
func killAt(t *testing.T, work, from, dir string, round int, after time.Duration) bool {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	c.Env = append(os.Environ(), killedEnv+"="+work, killedEnv+"_FROM="+from, killedEnv+"_DIR="+dir, fmt.Sprint(killedEnv, "_ROUND=", round),
		"TMPDIR="+t.TempDir()) // also for what package testing begins, to write coverage
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	time.Sleep(after)
	c.Process.Kill()
	c.Wait()
	if c.ProcessState.Exited() && !c.ProcessState.Success() {
		t.Fatalf("round %d: %v", round, c.ProcessState)
	}
	return !c.ProcessState.Exited()
}

// workUntilKilled works as the environment says, and tells by standard output when that begins.
func workUntilKilled(t *testing.T, w killedWork) {
	ctx, from := context.Background(), os.Getenv(killedEnv+"_FROM")
	round, err := strconv.Atoi(os.Getenv(killedEnv + "_ROUND"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(os.Getenv(killedEnv+"_DIR"), Limits{})
	if err == nil {
		err = w.before(ctx, s, from, round)
	}
	if err == nil {
		os.Stdout.WriteString("\n")
		err = w.do(ctx, s, from, round)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
