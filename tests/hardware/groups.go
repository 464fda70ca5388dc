package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	guestimages "vmm/guest-images"
)

// job is what one host runs.
type job struct {
	name   string
	cpus   int // of the host; 1 if 0
	limit  time.Duration
	script string // of a shell, in a copy of the source tree
	// counted has the host's clocks advance by a nanosecond with each instruction, and by
	// nothing else while there is one to execute: what takes time there is as many instructions.
	counted bool
	xsave   bool // the host has XSAVE, which its guests must not see
}

// hostTest is a function of a test binary, with what it asks for.
type hostTest struct {
	name  string // of the function; a package's name stands for all of its own
	dir   string // of the package
	smoke bool   // part of make test
	intel bool   // with bochs, too, if nothing is said: what TCG has not, and something of the rest
	cpus  int    // with two, TCG makes a host stand still more often
	// limit is several times what the test needs on a quiet machine with two cores.
	limit time.Duration
	env   string // of the test, as a shell has it
	xsave bool   // as job's
	// notBochs is what is left out with bochs of a package's tests, a regular expression.
	notBochs string
}

// allTests are the tests that need KVM. Longest first, so that two hosts end
// together.
var allTests = []hostTest{
	{name: "TestNet", dir: "tests", limit: 30 * time.Minute},
	{name: "TestRunCommand", dir: "tests", limit: 15 * time.Minute},
	{name: "TestMigration", dir: "tests", limit: 15 * time.Minute},
	{name: "TestSnapshotRounds", dir: "tests", limit: 15 * time.Minute},
	{name: "TestClones", dir: "tests", limit: 30 * time.Minute},
	{name: "TestVMs", dir: "tests", limit: 15 * time.Minute},
	{name: "TestDisks", dir: "tests", limit: 15 * time.Minute},
	{name: "TestBootDisk", dir: "tests", limit: 15 * time.Minute},
	{name: "TestKernelTests", dir: "tests", limit: 15 * time.Minute},
	{name: "TestGuest", dir: "tests", intel: true, limit: 15 * time.Minute},
	// bochs delivers no interrupt of the host while a guest with interrupts off executes what does not leave it, so that
	// its loops never end; and two CPUs that wait for each other are long on one.
	{name: "machine", dir: "machine", intel: true, limit: 10 * time.Minute, smoke: true,
		notBochs: "^(TestAttention|TestPause|TestPauseGaps|TestStop|TestCloseRunning|TestNothingIsLeft)$"},
	{name: "TestSmoke", dir: "tests", intel: true, limit: 10 * time.Minute, smoke: true},
	{name: "TestShares", dir: "tests", limit: 10 * time.Minute},
	{name: "TestHidden", dir: "tests", limit: 15 * time.Minute},
	{name: "TestNotRoot", dir: "tests", limit: 15 * time.Minute},
	{name: "TestJail", dir: "tests", limit: 10 * time.Minute, smoke: true},
	{name: "TestLimits", dir: "tests", limit: 15 * time.Minute, smoke: true},
	{name: "TestHostileGuest", dir: "tests", limit: 15 * time.Minute},
	{name: "TestWarmStart", dir: "tests", limit: 10 * time.Minute},
	{name: "TestBadSnapshots", dir: "tests", limit: 10 * time.Minute},
	{name: "TestSnapshotDisks", dir: "tests", limit: 10 * time.Minute},
	{name: "TestBisect", dir: "tests", limit: 10 * time.Minute},
	{name: "TestKernelTestsCancelled", dir: "tests", limit: 10 * time.Minute},
	{name: "TestGDB", dir: "tests", intel: true, limit: 10 * time.Minute},
	// A guest does not boot there by translations in a minute: TCG translates them anew with each that is added.
	{name: "TestEngineRestores", dir: "tests", limit: 15 * time.Minute, env: "VMM_TEST_FIRST_ENGINE=kvm", xsave: true},
	{name: "TestNested", dir: "tests", intel: true, limit: 10 * time.Minute},
	{name: "TestSwitch", dir: "tests", limit: 10 * time.Minute},
	{name: "TestTap", dir: "tests", limit: 10 * time.Minute},
	{name: "TestMigrationBetweenNamespaces", dir: "tests", limit: 10 * time.Minute},
	{name: "TestEnds", dir: "tests", intel: true, limit: 10 * time.Minute, smoke: true},
	{name: "TestFullDisk", dir: "tests", limit: 10 * time.Minute},
	{name: "TestRootFS", dir: "tests", limit: 10 * time.Minute},
	{name: "TestDiskErrors", dir: "tests", limit: 10 * time.Minute},
	{name: "TestTerminal", dir: "tests", limit: 10 * time.Minute},
	{name: "TestVirtioConsole", dir: "tests", limit: 10 * time.Minute},
	{name: "TestAgent", dir: "tests", limit: 10 * time.Minute},
	{name: "TestKilled", dir: "tests", limit: 10 * time.Minute},
	{name: "TestRunBinary", dir: "tests", limit: 10 * time.Minute},
	{name: "TestRunSignals", dir: "tests", limit: 10 * time.Minute},
	{name: "TestRunShell", dir: "tests", limit: 10 * time.Minute},
	{name: "TestBadCommands", dir: "tests", limit: 10 * time.Minute},
	{name: "TestBadNetworks", dir: "tests", limit: 10 * time.Minute},
	{name: "TestContainerImage", dir: "tests", limit: 10 * time.Minute},
	{name: "vm", dir: "vm", limit: 15 * time.Minute}, // its examples
	{name: "ring0", dir: "machine/ring0", limit: 15 * time.Minute},
	{name: "kvm", dir: "kvm", intel: true, limit: 5 * time.Minute, smoke: true, notBochs: "^TestCollectorEndsRun$"}, // a loop, see above
}

func testNames() string {
	var names []string
	for _, t := range allTests {
		names = append(names, t.name)
	}
	return strings.Join(names, " ")
}

// binary is the name of a package's test binary.
func binary(dir string) string { return strings.ReplaceAll(dir, "/", "-") + ".test" }

// job runs the test; filter is what the user gave to -run, and skip what is left out.
func (t *hostTest) job(filter, skip string) job {
	pattern := "^" + t.name + "$"
	if !strings.HasPrefix(t.name, "Test") {
		pattern = "."
	}
	if _, rest, ok := strings.Cut(filter, "/"); ok {
		pattern += "/" + rest
	}
	return job{name: t.name, cpus: t.cpus, xsave: t.xsave, limit: t.limit, script: fmt.Sprintf("cd %s && %s %s -test.v -test.count 1 -test.timeout %ds -test.run '%s' -test.skip '%s'",
		t.dir, t.env, binary(t.dir), int(t.limit.Seconds()), pattern, skip)}
}

// packages are those whose tests run on the host.
func packages() []string {
	seen, out := map[string]bool{}, []string{}
	for _, t := range allTests {
		if !seen[t.dir] {
			seen[t.dir] = true
			out = append(out, t.dir)
		}
	}
	return append(out, "tests/bench")
}

// benchJobs compare with QEMU. With one CPU, for the counts. A guest that waits stands still on a host that
// counts instructions.
var benchJobs = []job{
	{name: "bench", limit: 60 * time.Minute, script: benchScript("CompareBoot/(work|times)|CompareRestore")},
	{name: "instructions", limit: 60 * time.Minute, script: benchScript("CompareStart|CompareExits|CompareBoot/exits"), counted: true},
}

func benchScript(pattern string) string {
	return fmt.Sprintf("cd tests/bench && %s -test.count 1 -test.timeout 55m -test.run '%s' -compare", binary("tests/bench"), pattern)
}

// kernelJobs boot Debian's kernels, each on a host of its own; filter is what the user
// gave to -run.
func kernelJobs(filter *regexp.Regexp) []job {
	var jobs []job
	for _, suite := range guestimages.DebianSuites {
		if !filter.MatchString(suite) {
			continue
		}
		t := hostTest{name: "TestDebianKernels", dir: "tests", limit: 20 * time.Minute, env: "VMM_TEST_KERNELS=1"}
		j := t.job("/"+suite, "")
		j.name += "-" + suite
		jobs = append(jobs, j)
	}
	return jobs
}
