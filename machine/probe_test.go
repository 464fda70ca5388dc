package machine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestJudge decides for all kinds of host by what they took: one iteration, and
// loops of 500, 8000 and 64000.
func TestJudge(t *testing.T) {
	us := func(n ...float64) (d []time.Duration) {
		for _, v := range n {
			d = append(d, time.Duration(v*1e3))
		}
		return d
	}
	for _, c := range []struct {
		name string
		one  float64 // microseconds
		took []time.Duration
		want verdict
	}{
		{"bare metal", 1.1, us(1.3), hardware},
		{"nested on a cloud's machine", 9, us(9.4), hardware},
		{"nested, loaded", 60, us(64), hardware},
		{"nested, descheduled once", 40, us(310, 44), hardware},
		{"nested, descheduled twice", 40, us(310, 900, 92), hardware},
		{"under TCG", 85, us(88), hardware},
		{"under TCG, both CPUs busy", 300, us(2100, 4700, 1900), hardware},
		{"one iteration was the slow run", 400, us(70), hardware},
		{"exits that take longer than an interpreter's loop", 900, us(910, 920), hardware},
		{"one slow run says nothing yet", 1, us(900), unsure},
		{"two slow runs say nothing yet", 300, us(2100, 4700), unsure},
		{"in between to the end", 30, us(80, 900, 2500), hardware},
		{"interpreted, a fast machine", 12, us(245, 3800, 15050), interpreting},
		{"interpreted, a busy machine", 40, us(1100, 17000, 65000), interpreting},
		{"interpreted slowly", 30, us(2000, 32000, 128000), interpreting},
		{"interpreted, one iteration was disturbed", 3700, us(245, 3800, 15050), interpreting},
		{"a fast interpreter", 10, us(80, 1250, 5000), interpreting},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := judge(us(c.one)[0], probeLoops, c.took); got != c.want {
				t.Errorf("judged %v, want %v", got, c.want)
			}
		})
	}
}

// TestDecide: one run that nothing has disturbed is enough, and an interpreter has none.
func TestDecide(t *testing.T) {
	errRun := errors.New("it does not run")
	for _, c := range []struct {
		name string
		run  func(n uint64, call int) (time.Duration, error)
		want verdict
		runs int
		err  error
	}{
		{"hardware", func(uint64, int) (time.Duration, error) { return 88 * time.Microsecond, nil }, hardware, 1, nil},
		// An emulated host in a VM's group with half a CPU, as it was seen: runs of 6 and 7 ms among some of 1 ms.
		{"stalled for a while", func(n uint64, call int) (time.Duration, error) {
			if call < 2*loopTries+5 {
				return 7 * time.Millisecond, nil
			}
			return time.Duration(n) * 30, nil
		}, hardware, 2*loopTries + 6, nil},
		{"an interpreter", func(n uint64, _ int) (time.Duration, error) { return time.Duration(n) * 1430, nil }, interpreting, 3 * loopTries, nil},
		{"an error", func(_ uint64, call int) (time.Duration, error) { return time.Second, []error{nil, nil, errRun}[call] }, unsure, 3, errRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			runs := 0
			v, err := decide(300*time.Microsecond, func(n uint64) (time.Duration, error) {
				runs++
				return c.run(n, runs-1)
			})
			if v != c.want || runs != c.runs || !errors.Is(err, c.err) {
				t.Errorf("%v after %d runs, %v; want %v after %d, %v", v, runs, err, c.want, c.runs, c.err)
			}
		})
	}
}

// TestNotes keeps what was found out of a host, and nothing else.
func TestNotes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host")
	if v := readNote(path, "here"); v != unsure {
		t.Errorf("no note: %v", v)
	}
	for _, v := range []verdict{interpreting, hardware} {
		writeNote(path, "here", v)
		if got := readNote(path, "here"); got != v {
			t.Errorf("noted %v: %v", v, got)
		}
		if got := readNote(path, "there"); got != unsure {
			t.Errorf("noted %v of another host: %v", v, got)
		}
	}
	for _, other := range []string{"", "here", "here hard", "here hardware\nhere hardware\n"} {
		os.WriteFile(path, []byte(other), 0o600)
		if v := readNote(path, "here"); v != unsure {
			t.Errorf("%q: %v", other, v)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	os.Remove(path)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := readNote(path, "here"); v != unsure { // and it does not wait for a writer
		t.Errorf("a FIFO: %v", v)
	}
}

// BenchmarkProbe is what finding out about the host costs a process.
func BenchmarkProbe(b *testing.B) {
	needKVM(b)
	sys, _, err := KVMEngine.Open("")
	if err != nil {
		b.Fatal(err)
	}
	defer sys.Close()
	for b.Loop() {
		p, err := newProbe(sys)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.kind(); err != nil {
			b.Fatal(err)
		}
		p.close()
	}
}

// BenchmarkNew is what making a machine costs, and freeing it, without the probe.
func BenchmarkNew(b *testing.B) {
	needKVM(b)
	k := payload(b, codePowerOff...)
	for b.Loop() {
		m, err := New(Config{Kernel: k, Memory: 128 << 20})
		if err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
}
