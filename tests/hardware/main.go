// Hardware runs vmm's tests on a host with hardware virtualization, on a machine
// that has none: QEMU's TCG emulates an AMD CPU with SVM and nested paging, bochs one of
// Intel's with VMX, and a Debian in it has a real kvm-amd or kvm-intel. vmm's guests are
// guests of that guest.
//
//	make test-hardware [RUN=REGEX]
//	make test-hardware-intel [RUN=REGEX]
//	go run ./tests/hardware -exec 'vmm doctor'
//
// Its host is built once, of Debian's packages, and kept in vmm's cache directory.
// A few tests at a time have a host to themselves: one that stands still, which
// TCG does now and then, is ended and its tests get another.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	emulator string
	run      string
	smoke    bool
	verbose  bool
	exec     string
	bench    bool
	kernels  bool
	cpus     int
	counted  bool
	xsave    bool
	hosts    int
	keep     string
	limit    time.Duration
	given    []string // names of the flags that were
}

func main() {
	var o options
	flag.StringVar(&o.emulator, "emulator", "qemu", "the host's `NAME`: qemu has kvm-amd, bochs kvm-intel")
	flag.StringVar(&o.run, "run", "", "only tests whose name matches `REGEX`, as with go test")
	flag.BoolVar(&o.smoke, "smoke", false, "only the tests that every run of make test has")
	flag.BoolVar(&o.verbose, "v", false, "show the output of tests that pass")
	flag.StringVar(&o.exec, "exec", "", "run a shell `COMMAND` on the host instead of tests")
	flag.BoolVar(&o.bench, "bench", false, "compare with QEMU instead of testing")
	flag.BoolVar(&o.kernels, "kernels", false, "boot Debian's kernels instead, of the suites that -run matches; with -exec, have them in the cache")
	flag.IntVar(&o.cpus, "cpus", 0, "give each host this `NUMBER` of CPUs, not what its tests ask for")
	flag.BoolVar(&o.counted, "counted", false, "have the hosts' clocks count instructions, a nanosecond each; with one CPU")
	flag.BoolVar(&o.xsave, "xsave", false, "give the hosts XSAVE and AVX, which their guests must not use")
	flag.IntVar(&o.hosts, "hosts", 2, "run this `NUMBER` of hosts at the same time")
	flag.StringVar(&o.keep, "keep", "", "keep the hosts' consoles in this `DIRECTORY`")
	flag.DurationVar(&o.limit, "limit", 10*time.Minute, "end -exec after this time")
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { o.given = append(o.given, f.Name) })
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "hardware: %q: tests are named with -run\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ok, err := run(ctx, &o)
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hardware:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// run does what the options say, and reports whether all went well.
func run(ctx context.Context, o *options) (bool, error) {
	jobs, err := o.jobs()
	if err != nil {
		return false, err
	}
	e := emulators[o.emulator]
	dir, err := os.MkdirTemp("", "vmm-hardware-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	if o.keep == "" {
		o.keep = dir
	} else if o.keep, err = filepath.Abs(o.keep); err != nil {
		return false, err
	} else if err := os.MkdirAll(o.keep, 0o755); err != nil {
		return false, err
	}
	h, err := prepare(ctx, e, dir, o.kernels)
	if err != nil {
		return false, err
	}
	r := &reporter{out: os.Stdout, module: e.module(), verbose: o.verbose || o.exec != "" || o.bench, started: time.Now()}
	if o.emulator == "bochs" && o.exec == "" && o.run == "" {
		r.note("%d of %d tests: %s takes too long for the others, which -run names", len(jobs), len(allTests), o.emulator)
	}
	work := make(chan job, len(jobs))
	for _, j := range jobs {
		work <- j
	}
	close(work)
	var wg sync.WaitGroup
	for range max(min(o.hosts, len(jobs)), 1) {
		wg.Go(func() {
			for j := range work {
				if ctx.Err() == nil {
					if o.exec == "" {
						r.note("=== %s (%d more to start)", j.name, len(work))
					}
					h.runJob(ctx, j, o.keep, r)
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	return r.summary(), nil
}

// jobs are what the options ask for.
func (o *options) jobs() ([]job, error) {
	var jobs []job
	e, ok := emulators[o.emulator]
	if !ok {
		return nil, fmt.Errorf("-emulator %q: there are %s", o.emulator, strings.Join(slices.Sorted(maps.Keys(emulators)), " "))
	}
	if o.hosts < 1 {
		return nil, fmt.Errorf("-hosts %d: one at least", o.hosts)
	}
	if slices.Contains(o.given, "exec") && o.exec == "" {
		return nil, errors.New("-exec: no command")
	}
	if o.exec != "" && (o.smoke || o.bench || o.run != "") {
		return nil, errors.New("-exec runs a command in the place of tests: without -run, -smoke and -bench")
	}
	if o.emulator != "qemu" && (o.bench || o.kernels || o.counted || o.cpus > 1) {
		return nil, fmt.Errorf("-bench, -kernels, -counted and -cpus are not for %s, which is too slow, and has one CPU", o.emulator)
	}
	for _, part := range strings.Split(o.run, "/") { // as go test does, each for a level
		if _, err := regexp.Compile(part); err != nil {
			return nil, fmt.Errorf("-run: %w", err)
		}
	}
	switch {
	case o.exec != "":
		jobs = []job{{name: "exec", limit: o.limit, script: o.exec}}
	case o.bench:
		jobs = slices.Clone(benchJobs)
	case o.kernels:
		jobs = kernelJobs(regexp.MustCompile(o.run))
	default:
		// The part of an expression that names a test's function; the rest is for
		// the test itself.
		first, _, _ := strings.Cut(o.run, "/")
		match := regexp.MustCompile(first)
		for _, t := range allTests {
			if match.MatchString(t.name) && (t.smoke || !o.smoke) && (o.run != "" || e.covers(&t)) {
				jobs = append(jobs, t.job(o.run, e.skips(&t)))
			}
		}
		if len(jobs) == 0 {
			return nil, fmt.Errorf("-run %q: there is no such test; there are %s", o.run, testNames())
		}
	}
	for i := range jobs {
		if o.cpus > 0 {
			jobs[i].cpus = o.cpus
		}
		jobs[i].counted = jobs[i].counted || o.counted
		jobs[i].xsave = jobs[i].xsave || o.xsave
	}
	return jobs, nil
}
