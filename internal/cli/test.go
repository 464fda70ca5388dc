package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmm/internal/output"
	"vmm/internal/tail"
	"vmm/internal/visible"
	"vmm/kerneltest"
	"vmm/kerneltest/ktap"
	"vmm/machine"
)

// Exit statuses of vmm test, as git bisect run takes them.
const (
	statusTestsFailed = 1
	statusNoBoot      = 125
	statusInterrupted = 130
)

// testFlags are the flags of vmm test.
type testFlags struct {
	matrix  kerneltest.Matrix
	config  string
	images  []string
	modules string
	args    []string
	verbose bool
}

func testCommand() *cobra.Command {
	f := &testFlags{}
	cmd := &cobra.Command{
		Use:   "test [flags] [--] [COMMAND [ARGUMENT...]]",
		Short: "Test kernels: run commands on each of them",
		Long: "test boots each kernel in a VM and runs each command there, as vmm run does, several side by\n" +
			"side. It reads TAP and KTAP from the command and from the console, and finds panics, oopses,\n" +
			"warnings and the like on the console.\n\n" +
			"Exit status: 0 all passed, 1 one failed, 125 a kernel did not boot and none failed (so that\n" +
			"git bisect skips it), 2 wrong usage, 130 interrupted.",
		Example: "  vmm test --kernel arch/x86/boot/bzImage -- make -C tools/testing/selftests/timers run_tests\n" +
			"  vmm test --kernel old/bzImage --kernel new/bzImage -j 2 --junit report.xml -- ./check.sh\n" +
			"  vmm test --config vmtest.toml\n" +
			"  git bisect run sh -c 'make -j8 bzImage && vmm test --kernel arch/x86/boot/bzImage -- ./check.sh'",
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := f.complete(cmd.Flags(), args)
			if err != nil {
				return &exitError{statusUsage, err}
			}
			return f.run(cmd.Context(), cmd.OutOrStdout(), vms)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// add makes the flags.
func (f *testFlags) add(fl *pflag.FlagSet) {
	m := &f.matrix
	m.Memory = kerneltest.DefaultMemory
	fl.SortFlags = false
	fl.SetInterspersed(false)
	fl.StringArrayVar(&f.images, "kernel", nil, "kernel `FILE` to test; several are possible; the default guest's if not given")
	fl.StringVar(&f.modules, "modules", "", "the kernels' modules: `DIRECTORY` with a modules.dep (lib/modules/VERSION of make modules_install)")
	fl.StringArrayVar(&f.args, "append", nil, "kernel `ARGUMENTS`")
	fl.IntVarP(&m.Jobs, "jobs", "j", 0, "`NUMBER` of VMs side by side; what CPUs and memory allow if not given")
	fl.DurationVar(&m.Timeout, "timeout", kerneltest.DefaultTimeout, "how long each may take")
	fl.StringVar(&m.JUnit, "junit", "", "write a JUnit report to `FILE`")
	fl.VarP(&m.Memory, "memory", "m", "memory `SIZE` of each VM")
	fl.IntVarP(&m.CPUs, "cpus", "c", kerneltest.DefaultCPUs, "`NUMBER` of virtual CPUs of each VM")
	fl.StringVar(&m.Engine, "engine", string(machine.AutoEngine), engineUsage)
	fl.StringVar(&m.Root, "root", "", "root of the guests, as for vmm run")
	fl.StringArrayVar(&m.RW, "rw", nil, "a `DIRECTORY` of the host that the commands may write to")
	fl.StringArrayVar(&m.Shares, "share", nil, shareUsage)
	(*limitFlags)(&m.Limits).add(fl)
	fl.StringVar(&f.config, "config", "", "take kernels, tests and flags from a TOML `FILE`")
	fl.BoolVar(&m.Warm, "warm", false, "boot a kernel only once, and go on from a snapshot for its other tests; what boots is tested once then")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "show what the commands print as they print it")
}

// complete takes the file and what is not said in it, and returns what to run.
func (f *testFlags) complete(fl *pflag.FlagSet, args []string) ([]*kerneltest.VM, error) {
	m := &f.matrix
	if f.config != "" {
		if err := f.load(fl); err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
	}
	if len(f.images) > 0 {
		m.Kernels = nil
		for _, image := range f.images {
			m.Kernels = append(m.Kernels, kerneltest.Kernel{Image: image})
		}
	}
	if len(m.Kernels) == 0 {
		m.Kernels = []kerneltest.Kernel{{}}
	}
	for i := range m.Kernels {
		k := &m.Kernels[i]
		if k.Modules == "" {
			k.Modules = f.modules
		}
		k.Append = strings.TrimSpace(k.Append + " " + strings.Join(f.args, " "))
	}
	if len(args) > 0 {
		m.Tests = []kerneltest.Test{{Command: args}}
	}
	vms, err := m.VMs()
	if errors.Is(err, kerneltest.ErrNoTest) {
		err = fmt.Errorf("%w: vmm test ... -- COMMAND, or tests in a --config file", err)
	}
	return vms, err
}

// load reads the file; flags that were given win.
func (f *testFlags) load(fl *pflag.FlagSet) error {
	given := f.matrix
	file, err := kerneltest.Load(f.config)
	if err != nil {
		return err
	}
	f.matrix = file
	for flag, restore := range map[string]func(m *kerneltest.Matrix){
		"jobs":    func(m *kerneltest.Matrix) { m.Jobs = given.Jobs },
		"timeout": func(m *kerneltest.Matrix) { m.Timeout = given.Timeout },
		"junit":   func(m *kerneltest.Matrix) { m.JUnit = given.JUnit },
		"memory":  func(m *kerneltest.Matrix) { m.Memory = given.Memory },
		"cpus":    func(m *kerneltest.Matrix) { m.CPUs = given.CPUs },
		"engine":  func(m *kerneltest.Matrix) { m.Engine = given.Engine },
		"root":    func(m *kerneltest.Matrix) { m.Root = given.Root },
		"rw":      func(m *kerneltest.Matrix) { m.RW = given.RW },
		"share":   func(m *kerneltest.Matrix) { m.Shares = given.Shares },
		"warm":    func(m *kerneltest.Matrix) { m.Warm = given.Warm },

		"cpu-limit":    func(m *kerneltest.Matrix) { m.CPULimit = given.CPULimit },
		"memory-limit": func(m *kerneltest.Matrix) { m.MemoryLimit = given.MemoryLimit },
		"pids-limit":   func(m *kerneltest.Matrix) { m.PIDsLimit = given.PIDsLimit },
		"io-limit":     func(m *kerneltest.Matrix) { m.IOLimits = given.IOLimits },
	} {
		if fl.Changed(flag) {
			restore(&f.matrix)
		}
	}
	return nil
}

// run runs the matrix, which has these VMs, and tells what came of it.
func (f *testFlags) run(ctx context.Context, out io.Writer, vms []*kerneltest.VM) error {
	useDefault := slices.ContainsFunc(vms, func(vm *kerneltest.VM) bool { return vm.Kernel.Image == "" })
	err := prepareTests(ctx, useDefault)
	if ctx.Err() != nil {
		return &exitError{statusInterrupted, errors.New("interrupted")}
	}
	if err != nil {
		return failed(err)
	}
	report, err := f.openReport(vms)
	if err != nil {
		return err
	}
	defer report.Close()
	p := newTestProgress(out, len(vms))
	hooks := kerneltest.Hooks{Begin: p.begin, End: p.end}
	if f.verbose {
		hooks.Output = p.output
	}
	results, interrupted := f.matrix.Run(ctx, selfRunner(self), hooks)
	p.close()
	if os.Getenv("GITHUB_ACTIONS") != "true" {
		tellResults(out, results)
	} else {
		// What a guest says is no command to the runner, which takes one at any line's start.
		token := rand.Text()
		fmt.Fprintf(out, "::stop-commands::%s\n", token)
		tellResults(out, results)
		fmt.Fprintf(out, "::%s::\n", token)
		if err := results.WriteAnnotations(out); err != nil {
			return failed(err)
		}
	}
	if err := saveReport(report, results); err != nil {
		return failed(fmt.Errorf("--junit: %w", err))
	}
	if interrupted != nil {
		return &exitError{statusInterrupted, errors.New("interrupted")}
	}
	return testStatus(results)
}

// openReport opens the file of --junit, before there are guests; nil if none is wanted.
func (f *testFlags) openReport(vms []*kerneltest.VM) (*output.File, error) {
	if f.matrix.JUnit == "" {
		return nil, nil
	}
	s, err := testSession(vms[0]) // all have the same shares
	if err != nil {
		return nil, failed(err)
	}
	var guest []string
	for _, share := range s.Config.Shares {
		if !share.ReadOnly && !share.Overlay {
			guest = append(guest, share.Host)
		}
	}
	report, err := output.Open(f.matrix.JUnit, output.Report, guest)
	if err != nil {
		return nil, failed(fmt.Errorf("--junit: %w", err))
	}
	return report, nil
}

// saveReport writes the whole report at once.
func saveReport(report *output.File, results kerneltest.Results) error {
	if report == nil {
		return nil
	}
	var b bytes.Buffer
	if err := results.WriteJUnit(&b); err != nil {
		return err
	}
	return report.Replace(b.Bytes())
}

// prepareTests builds what all VMs need before they all want to.
func prepareTests(ctx context.Context, useDefault bool) error {
	builder, finish := setupBuilder()
	defer finish()
	if _, err := builder.Initramfs(ctx); err != nil || !useDefault {
		return err
	}
	_, err := builder.DefaultKernel(ctx)
	return err
}

// testStatus is the exit status of results that are all there.
func testStatus(results kerneltest.Results) error {
	switch v := results.Verdict(); {
	case v.Good():
		return nil
	case v == kerneltest.NoBoot:
		return &exitError{statusNoBoot, nil}
	}
	return &exitError{statusTestsFailed, nil}
}

// tellResults prints the details of what did not pass, and the table.
func tellResults(to io.Writer, results kerneltest.Results) {
	out := visible.NewWriter(to)
	defer out.Flush()
	for i := range results {
		tellFailure(out, &results[i])
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "\nKERNEL\tTEST\tRESULT\tTIME\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\n", r.VM.Kernel.Name, r.VM.Test.Name, r.Verdict, r.Duration.Round(100*time.Millisecond), r.Reason)
	}
	w.Flush()
}

// shownLines is how much of its output is shown of a test that failed.
const shownLines = 30

// tellFailure prints why a test did not pass.
func tellFailure(out io.Writer, r *kerneltest.Result) {
	if r.Verdict.Good() || r.Verdict == kerneltest.Cancelled {
		return
	}
	fmt.Fprintf(out, "\n--- %s: %s: %s\n", r.VM.Name(), r.Verdict, r.Reason)
	for _, f := range r.Findings {
		fmt.Fprintf(out, "%s\n\n", f.Excerpt)
	}
	for _, c := range r.Report.Cases {
		if c.Result == ktap.Fail {
			fmt.Fprintf(out, "not ok %s\n", c.Name)
			if c.Detail != "" {
				fmt.Fprintf(out, "    %s\n", strings.ReplaceAll(c.Detail, "\n", "\n    "))
			}
		}
	}
	if len(r.Findings) == 0 {
		if s := strings.Join(tail.Lines(r.Output, shownLines), "\n"); s != "" {
			fmt.Fprintln(out, s)
		}
		if r.Verdict == kerneltest.NoBoot || r.Verdict == kerneltest.Timeout {
			fmt.Fprintf(out, "The end of the console:\n%s\n", strings.Join(tail.Lines(r.Console, shownLines), "\n"))
		}
	}
}
