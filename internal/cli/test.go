package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Exit statuses of vmm test, as git bisect run takes them.
const (
	statusTestsFailed = 1
	statusNoBoot      = 125
	statusInterrupted = 130
)

// defaultTestTimeout is how long a test may take where nothing else is said.
const defaultTestTimeout = 5 * time.Minute

// testFlags are the flags of vmm test, and what its file has.
type testFlags struct {
	Jobs    int          `toml:"jobs"`
	Warm    bool         `toml:"warm"`
	Timeout duration     `toml:"timeout"`
	JUnit   string       `toml:"junit"`
	Memory  string       `toml:"memory"`
	CPUs    int          `toml:"cpus"`
	RW      []string     `toml:"rw"`
	Shares  []string     `toml:"share"`
	Root    string       `toml:"root"`
	Kernels []kernelSpec `toml:"kernel"`
	Tests   []testSpec   `toml:"test"`

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
			"git bisect skips it), 2 wrong usage.",
		Example: "  vmm test --kernel arch/x86/boot/bzImage -- make -C tools/testing/selftests/timers run_tests\n" +
			"  vmm test --kernel old/bzImage --kernel new/bzImage -j 2 --junit report.xml -- ./check.sh\n" +
			"  vmm test --config vmtest.toml\n" +
			"  git bisect run sh -c 'make -j8 bzImage && vmm test --kernel arch/x86/boot/bzImage -- ./check.sh'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(cmd, args); err != nil {
				return &exitError{statusUsage, err}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			return f.run(ctx, cmd.OutOrStdout())
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.SetInterspersed(false)
	fl.StringArrayVar(&f.images, "kernel", nil, "kernel `FILE` to test; several are possible; the default guest's if not given")
	fl.StringVar(&f.modules, "modules", "", "the kernels' modules: `DIRECTORY` with a modules.dep (lib/modules/VERSION of make modules_install)")
	fl.StringArrayVar(&f.args, "append", nil, "kernel `ARGUMENTS`")
	fl.IntVarP(&f.Jobs, "jobs", "j", 0, "`NUMBER` of VMs side by side; what CPUs and memory allow if not given")
	fl.DurationVar(&f.Timeout.Duration, "timeout", defaultTestTimeout, "how long each may take")
	fl.StringVar(&f.JUnit, "junit", "", "write a JUnit report to `FILE`")
	fl.StringVarP(&f.Memory, "memory", "m", "512M", "memory `SIZE` of each VM")
	fl.IntVarP(&f.CPUs, "cpus", "c", 1, "`NUMBER` of virtual CPUs of each VM")
	fl.StringVar(&f.Root, "root", "", "root of the guests, as for vmm run")
	fl.StringArrayVar(&f.RW, "rw", nil, "a `DIRECTORY` of the host that the commands may write to")
	fl.StringArrayVar(&f.Shares, "share", nil, shareUsage)
	fl.StringVar(&f.config, "config", "", "take kernels, tests and flags from a TOML `FILE`")
	fl.BoolVar(&f.Warm, "warm", false, "boot a kernel only once, and go on from a snapshot for its other tests; what boots is tested once then")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "show what the commands print as they print it")
	return cmd
}

// complete takes the file and fills in what is not said.
func (f *testFlags) complete(cmd *cobra.Command, args []string) error {
	if f.config != "" {
		if err := f.load(cmd); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	if len(f.images) > 0 {
		f.Kernels = nil
		for _, image := range f.images {
			f.Kernels = append(f.Kernels, kernelSpec{Image: image})
		}
	}
	if len(f.Kernels) == 0 {
		f.Kernels = []kernelSpec{{}}
	}
	if len(args) > 0 {
		f.Tests = []testSpec{{Command: args}}
	}
	if len(f.Tests) == 0 {
		return errors.New("no command to run: vmm test ... -- COMMAND, or tests in a --config file")
	}
	for i := range f.Kernels {
		k := &f.Kernels[i]
		if k.Modules == "" {
			k.Modules = f.modules
		}
		k.Append = strings.TrimSpace(k.Append + " " + strings.Join(f.args, " "))
		k.complete()
	}
	for i := range f.Tests {
		t := &f.Tests[i]
		if len(t.Command) == 0 {
			return fmt.Errorf("test %q has no command", t.Name)
		}
		if t.Name == "" {
			t.Name = strings.Join(t.Command, " ")
		}
		if t.Timeout.Duration == 0 {
			t.Timeout = f.Timeout
		}
	}
	var memory byteSize
	if err := memory.Set(f.Memory); err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	if f.Jobs < 0 {
		return fmt.Errorf("-j %d: a number above 0", f.Jobs)
	}
	if f.Jobs == 0 {
		f.Jobs = max(1, min(runtime.NumCPU()/max(f.CPUs, 1), int(memAvailable()/(uint64(memory)+memoryBeside))))
	}
	return nil
}

// memoryBeside is what a VM takes beside its guest's memory, in bytes, generously.
const memoryBeside = 64 << 20

// load reads the file; flags that were given win.
func (f *testFlags) load(cmd *cobra.Command) error {
	file := testFlags{Timeout: f.Timeout, Memory: f.Memory, CPUs: f.CPUs}
	meta, err := decodeTOML(f.config, &file)
	if err != nil {
		return err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("%s: there is no %q", f.config, unknown[0])
	}
	given := cmd.Flags().Changed
	for _, v := range []struct {
		flag string
		take func()
	}{
		{"jobs", func() { f.Jobs = file.Jobs }}, {"timeout", func() { f.Timeout = file.Timeout }},
		{"junit", func() { f.JUnit = file.JUnit }}, {"memory", func() { f.Memory = file.Memory }},
		{"cpus", func() { f.CPUs = file.CPUs }}, {"root", func() { f.Root = file.Root }},
		{"rw", func() { f.RW = file.RW }}, {"share", func() { f.Shares = file.Shares }},
	} {
		if !given(v.flag) {
			v.take()
		}
	}
	f.Kernels, f.Tests = file.Kernels, file.Tests
	return nil
}

// shape is what all VMs have in common, as flags of vmm run.
func (f *testFlags) shape() []string {
	args := []string{"-m", f.Memory, "-c", fmt.Sprint(f.CPUs)}
	if f.Warm {
		args = append(args, "--warm")
	}
	if f.Root != "" {
		args = append(args, "--root", f.Root)
	}
	for _, d := range f.RW {
		args = append(args, "--rw", d)
	}
	for _, s := range f.Shares {
		args = append(args, "--share", s)
	}
	return args
}

// run runs the matrix.
func (f *testFlags) run(ctx context.Context, out io.Writer) error {
	var runs []*testRun
	useDefault := false
	for _, k := range f.Kernels {
		useDefault = useDefault || k.Image == ""
		for _, t := range f.Tests {
			runs = append(runs, &testRun{kernel: k, test: t})
		}
	}
	if err := f.prepare(ctx, useDefault); err != nil {
		return failed(err)
	}
	p := newProgress(out, len(runs))
	next := make(chan *testRun)
	var workers sync.WaitGroup
	for range min(f.Jobs, len(runs)) {
		workers.Go(func() {
			for t := range next {
				p.begin(t)
				t.run(ctx, f.shape(), f.watch(p, t))
				p.end(t)
			}
		})
	}
	for _, t := range runs {
		select {
		case next <- t:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
	p.close()
	if ctx.Err() != nil {
		return &exitError{statusInterrupted, errors.New("interrupted")}
	}
	if err := f.tell(out, runs); err != nil {
		return failed(err)
	}
	return verdictOf(runs)
}

// prepare builds what all VMs need before they all want to.
func (f *testFlags) prepare(ctx context.Context, useDefault bool) error {
	builder, finish := setupBuilder()
	defer finish()
	if _, err := builder.Initramfs(ctx); err != nil || !useDefault {
		return err
	}
	_, err := builder.DefaultKernel(ctx)
	return err
}

// watch is where a test's output goes while it runs.
func (f *testFlags) watch(p *progress, t *testRun) io.Writer {
	if !f.verbose {
		return io.Discard
	}
	return &prefixed{p: p, prefix: t.name() + " | "}
}

// tell prints the details of what did not pass, the table, and the reports.
func (f *testFlags) tell(out io.Writer, runs []*testRun) error {
	for _, t := range runs {
		t.tellFailure(out)
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "\nKERNEL\tTEST\tRESULT\tTIME\t")
	for _, t := range runs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\n", t.kernel.Name, t.test.Name, t.verdict, t.took.Round(100*time.Millisecond), t.reason)
	}
	w.Flush()
	if os.Getenv("GITHUB_ACTIONS") == "true" {
		for _, t := range runs {
			t.annotate(out)
		}
	}
	if f.JUnit == "" {
		return nil
	}
	return writeJUnit(f.JUnit, runs)
}

// verdictOf is the exit status of all.
func verdictOf(runs []*testRun) error {
	status := statusOK
	for _, t := range runs {
		switch {
		case t.verdict == notBoot && status == statusOK:
			status = statusNoBoot
		case !slices.Contains([]verdict{passed, skipped, notBoot}, t.verdict):
			status = statusTestsFailed
		}
	}
	if status == statusOK {
		return nil
	}
	return &exitError{status, nil}
}

// progress is what is seen while the tests run: a line for each that has ended,
// and on a terminal, below, one for each that runs.
type progress struct {
	out   io.Writer
	live  bool
	total int

	mu      sync.Mutex
	running []*testRun
	since   map[*testRun]time.Time
	done    int
	drawn   int // lines below
	stop    chan struct{}
}

func newProgress(out io.Writer, total int) *progress {
	p := &progress{out: out, total: total, since: map[*testRun]time.Time{}, stop: make(chan struct{})}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.live = true
		go p.redraw()
	}
	return p
}

func (p *progress) redraw() {
	for {
		select {
		case <-time.After(time.Second):
			p.mu.Lock()
			p.draw("")
			p.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

// draw prints a text above the lines of those that run; mu is held.
func (p *progress) draw(text string) {
	if !p.live {
		io.WriteString(p.out, text)
		return
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn)
	}
	b.WriteString(text)
	p.drawn = 0
	for _, t := range p.running {
		fmt.Fprintf(&b, "  … %s (%v)\n", t.name(), time.Since(p.since[t]).Round(time.Second))
		p.drawn++
	}
	io.WriteString(p.out, b.String())
}

func (p *progress) begin(t *testRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, t)
	p.since[t] = time.Now()
	text := ""
	if !p.live {
		text = fmt.Sprintf("        %s ...\n", t.name())
	}
	p.draw(text)
}

func (p *progress) end(t *testRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = slices.DeleteFunc(p.running, func(r *testRun) bool { return r == t })
	p.done++
	line := fmt.Sprintf("[%d/%d] %s: %s (%v)", p.done, p.total, t.name(), t.verdict, t.took.Round(100*time.Millisecond))
	if t.reason != "" {
		line += ": " + t.reason
	}
	p.draw(line + "\n")
}

func (p *progress) close() { close(p.stop) }

// prefixed writes whole lines, each with the test's name.
type prefixed struct {
	p      *progress
	prefix string
	mu     sync.Mutex
	line   []byte
}

// Write implements io.Writer.
func (w *prefixed) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = append(w.line, b...)
	for {
		line, rest, found := strings.Cut(string(w.line), "\n")
		if !found {
			return len(b), nil
		}
		w.p.mu.Lock()
		w.p.draw(w.prefix + line + "\n")
		w.p.mu.Unlock()
		w.line = []byte(rest)
	}
}
