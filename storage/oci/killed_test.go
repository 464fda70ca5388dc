package oci

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
)

// killedEnv has the child of TestKilled pull from this registry, into this store.
const killedEnv = "VMM_TEST_PULL"

// TestKilled kills a process that pulls, removes and cleans up, at any time: the store stays
// whole.
func TestKilled(t *testing.T) {
	if from := os.Getenv(killedEnv); from != "" {
		pullUntilKilled(from, os.Getenv(killedEnv+"_DIR"))
	}
	h := newHub(t)
	base := layerOf(t, text("base", noise(300000)))
	for i := range 3 {
		h.push(t, fmt.Sprint("x:", i), imageOf(t, base, layerOf(t, text("own", noise(100000*(i+1))))))
	}
	s := newStore(t, Limits{})
	const rounds = 50
	random := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		c := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		c.Env = append(os.Environ(), killedEnv+"="+h.host, killedEnv+"_DIR="+s.dir)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
		c.Process.Kill()
		c.Wait()
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			if got := tree(t, fileSystem(t, i)); len(got) != 2 {
				t.Fatalf("%s: %d files", i.Name, len(got))
			}
		}
	}
	for i := range 3 {
		image, err := s.Pull(t.Context(), h.host+fmt.Sprint("/x:", i), Registry{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree(t, fileSystem(t, image)); len(got) != 2 || got[1] != "own = "+noise(100000*(i+1)) {
			t.Errorf("%s: the contents are others", image.Name)
		}
	}
	if _, err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := contentsOf(t, s.dir); len(left) != 4*3+3*3 { // of four layers and three images
		t.Errorf("%d files are left: %q", len(left), left)
	}
}

// pullUntilKilled does in the store whatever one does in it.
func pullUntilKilled(host, dir string) {
	ctx := context.Background()
	for i := 0; ; i++ {
		s, err := Open(dir, Limits{})
		if err == nil {
			_, err = s.Pull(ctx, host+fmt.Sprint("/x:", i%3), Registry{}, nil)
		}
		if err == nil && i%2 == 1 {
			_, err = s.Remove(ctx, host+fmt.Sprint("/x:", i%3))
		}
		if err == nil {
			_, err = s.Prune(ctx)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
