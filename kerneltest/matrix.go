package kerneltest

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"vmm/bootloader"
	"vmm/internal/bytesize"
	"vmm/internal/meminfo"
	"vmm/internal/tomlfile"
)

// What a matrix has where it says nothing.
const (
	DefaultTimeout = 5 * time.Minute
	DefaultMemory  = bytesize.Size(512 << 20)
	DefaultCPUs    = 1
)

// DefaultKernel is the image of the default guest's kernel, as a file calls it.
const DefaultKernel = "default"

// Matrix is what to test: every test on every kernel. The tags are its form in a
// file; see docs/kernel-ci.md. The zero value lacks only a test.
type Matrix struct {
	Kernels []Kernel      `toml:"kernel"`  // the default guest's if there is none
	Tests   []Test        `toml:"test"`    // at least one
	Jobs    int           `toml:"jobs"`    // VMs side by side; 0 is what CPUs and memory allow
	Timeout time.Duration `toml:"timeout"` // of tests that have none; 0 is DefaultTimeout
	JUnit   string        `toml:"junit"`   // the file for a report; Run does not write it (see Results.WriteJUnit)
	Shape
}

// Kernel is one to test.
type Kernel struct {
	// Name is, if it is empty, what the image calls itself, or its file's name. What
	// kernels of one name differ in is added to it then: the path, or the arguments.
	Name    string `toml:"name"`
	Image   string `toml:"image"`   // a bzImage or vmlinux; empty or DefaultKernel is the default guest's
	Modules string `toml:"modules"` // a directory with a modules.dep; empty if there are none
	Append  string `toml:"append"`  // kernel arguments
}

// Test is a command to run in the guest.
type Test struct {
	Name    string        `toml:"name"` // the command if it is empty
	Command []string      `toml:"command"`
	Timeout time.Duration `toml:"timeout"` // from the VM's start to the command's end; 0 is the matrix's
}

// Shape is what all VMs of a matrix have in common.
type Shape struct {
	Memory bytesize.Size `toml:"memory"` // 0 is DefaultMemory
	CPUs   int           `toml:"cpus"`   // 0 is DefaultCPUs
	RW     []string      `toml:"rw"`     // directories of the host that the commands may write to
	Shares []string      `toml:"share"`  // directories of the host, as HOST:GUEST[:ro]
	Root   string        `toml:"root"`   // the guests' root: a directory, disk image or tar archive; empty is the host's
	Engine string        `toml:"engine"` // what executes the guests, as vm.Config.Engine has it
	Warm   bool          `toml:"warm"`   // boot a kernel once, and go on from a snapshot for its other tests
	Limits
}

// Limits are what the process of each VM may take of the host; what is zero has no limit.
type Limits struct {
	CPULimit    float64       `toml:"cpu-limit"`    // CPU time per time
	MemoryLimit bytesize.Size `toml:"memory-limit"` // the guest's and the process's
	PIDsLimit   int           `toml:"pids-limit"`   // threads
	IOLimits    []string      `toml:"io-limit"`     // of devices of the host, as PATH:RATE[,RATE...]
}

// VM is one cell of a matrix: a test on a kernel. Nothing in it is left to a default.
type VM struct {
	Kernel Kernel // Image is empty for the default guest's
	Test   Test
	Shape
}

// Name is the kernel's and the test's.
func (vm *VM) Name() string { return vm.Kernel.Name + ": " + vm.Test.Name }

// Load reads a matrix from a TOML file. A key that there is not is an error. Errors
// name the file and, where that can be told, the line.
func Load(path string) (m Matrix, err error) {
	err = tomlfile.Decode(path, &m)
	return m, err
}

// ErrNoTest is that a matrix has no test.
var ErrNoTest = errors.New("there is no command to run")

// minTimeout is less than any VM takes. What is below has lost its unit: an integer in
// a TOML file counts nanoseconds.
const minTimeout = time.Millisecond

// VMs are the cells, each kernel's tests in their order. It reads the kernel images
// for their names. An error says what is wrong with the matrix; without tests it is
// ErrNoTest.
func (m *Matrix) VMs() ([]*VM, error) {
	shape := m.Shape
	if shape.Memory == 0 {
		shape.Memory = DefaultMemory
	}
	if shape.CPUs == 0 {
		shape.CPUs = DefaultCPUs
	}
	switch {
	case len(m.Tests) == 0:
		return nil, ErrNoTest
	case m.Jobs < 0:
		return nil, fmt.Errorf("jobs: %d VMs side by side: a number above 0", m.Jobs)
	case shape.CPUs < 0:
		return nil, fmt.Errorf("cpus: %d: a number above 0", shape.CPUs)
	}
	tests := slices.Clone(m.Tests)
	for i := range tests {
		if err := tests[i].complete(m.Timeout); err != nil {
			return nil, err
		}
	}
	kernels := slices.Clone(m.Kernels)
	if len(kernels) == 0 {
		kernels = []Kernel{{}}
	}
	for i := range kernels {
		kernels[i].complete()
	}
	m.tellApart(kernels)
	vms := make([]*VM, 0, len(kernels)*len(tests))
	for _, k := range kernels {
		for _, t := range tests {
			vms = append(vms, &VM{Kernel: k, Test: t, Shape: shape})
		}
	}
	return vms, nil
}

// complete checks a test and fills in what is not said.
func (t *Test) complete(timeout time.Duration) error {
	if len(t.Command) == 0 {
		return fmt.Errorf("test %q has no command", t.Name)
	}
	if t.Name == "" {
		t.Name = strings.Join(t.Command, " ")
	}
	if t.Timeout == 0 {
		t.Timeout = timeout
	}
	if t.Timeout == 0 {
		t.Timeout = DefaultTimeout
	}
	if t.Timeout < minTimeout {
		return fmt.Errorf("test %q: a timeout of %v: a duration such as \"90s\" or \"5m\"", t.Name, t.Timeout)
	}
	return nil
}

// complete gives a kernel its name, if it has none.
func (k *Kernel) complete() {
	if k.Image == DefaultKernel {
		k.Image = ""
	}
	switch {
	case k.Name != "":
	case k.Image == "":
		k.Name = DefaultKernel
	default:
		k.Name = filepath.Base(k.Image)
		if k.Name == "bzImage" || k.Name == "vmlinux" { // of a build: its version says more
			if v := kernelVersion(k.Image); v != "" {
				k.Name = v
			}
		}
	}
}

// tellApart adds to names that several kernels have, and that the matrix has not given
// them, what these differ in.
func (m *Matrix) tellApart(kernels []Kernel) {
	for _, detail := range []func(*Kernel) string{
		func(k *Kernel) string { return k.Image }, func(k *Kernel) string { return k.Modules },
		func(k *Kernel) string { return k.Append },
	} {
		details := map[string]map[string]bool{} // by names
		for i := range kernels {
			k := &kernels[i]
			if details[k.Name] == nil {
				details[k.Name] = map[string]bool{}
			}
			details[k.Name][detail(k)] = true
		}
		for i := range kernels {
			k := &kernels[i]
			if d := detail(k); d != "" && len(details[k.Name]) > 1 && m.Kernels[i].Name == "" {
				k.Name += " (" + d + ")"
			}
		}
	}
}

// kernelVersion is what an image calls itself; empty if it does not.
func kernelVersion(path string) string {
	k, err := bootloader.Open(path)
	if err != nil {
		return ""
	}
	version, _, _ := strings.Cut(k.Version(), " ")
	return version
}

// memoryBeside is what a VM takes beside its guest's memory, in bytes, generously.
const memoryBeside = 64 << 20

// jobs is how many of a matrix's VMs run side by side.
func (m *Matrix) jobs(vms []*VM) int {
	n := m.Jobs
	if n == 0 {
		shape := vms[0].Shape
		n = min(runtime.NumCPU()/shape.CPUs, int(meminfo.Value("MemAvailable")<<10/(uint64(shape.Memory)+memoryBeside)))
	}
	return max(1, min(n, len(vms)))
}
