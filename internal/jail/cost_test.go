package jail

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"
)

// costs are jails whose making is timed, each with more than the one before.
var costs = []struct {
	name       string
	level      Level
	internet   bool
	privileged bool // without that there are no namespaces
	begun      bool // beside other work
}{
	{"Landlock", Landlock, false, false, false},
	{"and seccomp", Full, false, false, false},
	{"and namespaces, with a gateway", Full, true, true, false},
	{"and namespaces, without one", Full, false, true, false},
	{"with a gateway, begun before", Full, true, true, true},
	{"without one, begun before", Full, false, true, true},
}

// otherWork is how long what is begun has before it is needed: less than the rest of a start takes.
const otherWork = 5 * time.Millisecond

// cost makes a jail and says how many nanoseconds that took.
func cost(number, dir string) error {
	i, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	c := costs[i]
	if !c.privileged {
		if err := keepOnly(0); err != nil {
			return err
		}
	}
	r := rules(dir, c.internet)
	if c.begun {
		r.Begun = Begin(c.level, c.internet)
		r.Begun.Root(r)
		time.Sleep(otherWork)
	}
	begin := time.Now()
	if _, err := Enforce(c.level, r, violation); err != nil {
		return err
	}
	fmt.Print(time.Since(begin).Nanoseconds())
	return nil
}

// BenchmarkEnforce makes each jail in turn, b.N times, and says by median and quartiles how
// long each took.
func BenchmarkEnforce(b *testing.B) {
	if cgo {
		b.Skip("what vmm is built without makes other jails")
	}
	dir := b.TempDir()
	times := make([][]time.Duration, len(costs))
	for b.Loop() {
		for i := range costs {
			c := exec.Command(os.Args[0], dir)
			c.Env = append(os.Environ(), costVariable+"="+strconv.Itoa(i))
			out, err := c.CombinedOutput()
			ns, bad := strconv.Atoi(string(out))
			if err != nil || bad != nil {
				b.Fatalf("%s: %v\n%s", costs[i].name, err, out)
			}
			times[i] = append(times[i], time.Duration(ns))
		}
	}
	for i, list := range times {
		slices.Sort(list)
		at := func(quarter int) time.Duration { return list[(len(list)-1)*quarter/4].Round(time.Microsecond) }
		b.Logf("%-32s %8v (%v to %v), at least %v", costs[i].name, at(2), at(1), at(3), at(0))
	}
}
