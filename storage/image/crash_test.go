package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The crash test's disk: blocks that say which operation wrote them.
const (
	crashBlocks = 4096
	crashBlock  = 4096
	crashOps    = 1 << 20 // more than a round gets done
)

// crashOp is what operation n does: it is the same in the process that is
// killed and in the one that looks at what is left.
func crashOp(rng *rand.Rand) (block int, zero bool) {
	return rng.IntN(crashBlocks), rng.IntN(6) == 0
}

// TestMain is the process that is killed, when asked to be.
func TestMain(m *testing.M) {
	if path := os.Getenv("VMM_CRASH_WRITER"); path != "" {
		seed, _ := strconv.ParseUint(os.Getenv("VMM_CRASH_SEED"), 10, 64)
		if err := crashWriter(path, seed); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashWriter writes, discards and flushes, and prints after each flush how
// many operations are safe.
func crashWriter(path string, seed uint64) error {
	img, err := Open(path, Options{})
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, crashBlock)
	for n := uint64(1); n < crashOps; n++ {
		block, zero := crashOp(rng)
		off := int64(block) * crashBlock
		switch {
		case zero && n%2 == 0:
			err = img.WriteZeroes(off, crashBlock, true)
		case zero:
			clear(b)
			err = img.WriteV([][]byte{b}, off)
		default:
			for i := 0; i < crashBlock; i += 16 {
				binary.LittleEndian.PutUint64(b[i:], n)
				binary.LittleEndian.PutUint64(b[i+8:], uint64(block))
			}
			err = img.WriteV([][]byte{b[:512], b[512:]}, off)
		}
		if err != nil {
			return err
		}
		if n%37 == 0 {
			if err := img.Flush(); err != nil {
				return err
			}
			fmt.Println(n)
		}
	}
	return nil
}

// TestCrash kills a process that writes an image, at any moment, and wants an
// image that is sound and has all that was flushed. VMM_TEST_CRASHES sets the
// number of rounds.
func TestCrash(t *testing.T) {
	needQemuImg(t)
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("VMM_TEST_CRASHES")); err == nil {
		rounds = n
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	options := []string{"compat=1.1", "lazy_refcounts=on", "cluster_size=4096", "compat=0.10", "cluster_size=512,refcount_bits=1", "cluster_size=2M"}
	for round := range rounds {
		option := options[round%len(options)]
		path := filepath.Join(t.TempDir(), "disk")
		qemuImg(t, "create", "-q", "-f", "qcow2", "-o", option, path, fmt.Sprint(crashBlocks*crashBlock))
		// Twice: the second begins with what the first left.
		for life := range 2 {
			seed := uint64(2*round + life)
			safe := crash(t, self, path, seed)
			checkCrashed(t, option, path, seed, safe, life == 0)
			if t.Failed() {
				return
			}
		}
	}
}

// crash runs a writer for a random time and returns how many operations it
// said were safe.
func crash(t *testing.T, self, path string, seed uint64) (safe uint64) {
	t.Helper()
	c := exec.Command(self)
	c.Env = append(os.Environ(), "VMM_CRASH_WRITER="+path, fmt.Sprint("VMM_CRASH_SEED=", seed))
	var said strings.Builder
	c.Stderr = &said
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Duration(20+rand.IntN(180))*time.Millisecond, func() { c.Process.Kill() })
	for s := bufio.NewScanner(out); s.Scan(); {
		if n, err := strconv.ParseUint(s.Text(), 10, 64); err == nil {
			safe = n
		}
	}
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the writer was not killed: %v\n%s", err, said.String())
	}
	return safe
}

// checkCrashed looks at what a killed writer left. fresh tells that all was
// zero before it.
func checkCrashed(t *testing.T, option, path string, seed, safe uint64, fresh bool) {
	t.Helper()
	if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		const leaks = 3
		// With lazy refcounts they are wrong until the image is opened.
		if option != "lazy_refcounts=on" && (!errors.As(err, &exit) || exit.ExitCode() != leaks) {
			t.Fatalf("%s: qemu-img check: %v\n%s", option, err, out)
		}
	}
	img, err := Open(path, Options{})
	if err != nil {
		t.Fatalf("%s: %v", option, err)
	}
	if r, err := img.Qcow2.Check(false); err != nil || r.Corruptions > 0 {
		t.Fatalf("%s: %+v, %v", option, r, err)
	}
	// must is the last operation on a block that was flushed, zeroed those that
	// may have made it zero since.
	must := make([]uint64, crashBlocks)
	mayZero := make([]bool, crashBlocks)
	touched := make([]bool, crashBlocks)
	for i := range mayZero {
		mayZero[i] = fresh
	}
	rng := rand.New(rand.NewPCG(seed, 7))
	for n := uint64(1); n < safe+40; n++ { // it got at most 37 further
		block, zero := crashOp(rng)
		switch {
		case n <= safe:
			must[block], mayZero[block], touched[block] = n, zero, true
		case zero:
			mayZero[block] = true
		}
	}
	b := make([]byte, crashBlock)
	for block := range crashBlocks {
		if err := img.ReadV([][]byte{b}, int64(block)*crashBlock); err != nil {
			t.Fatal(err)
		}
		n, at := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		zero := n == 0 && at == 0
		if !fresh && !touched[block] {
			continue // the life before this one wrote it
		}
		if zero && !mayZero[block] || !zero && (at != uint64(block) || n < must[block]) {
			t.Errorf("%s: block %d holds operation %d of block %d; %d was flushed, %d in all", option, block, n, at, must[block], safe)
		}
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil && !strings.Contains(string(out), "leaked") {
		t.Fatalf("%s: after it was closed: %v\n%s", option, err, out)
	}
}
