package kerneltest_test

import (
	"context"
	"fmt"
	"strings"

	"vmm/kerneltest"
)

// Two tests on two kernels, of which the newer one has a fault. The runner here only
// pretends; one that runs VMs looks the same from outside.
func Example() {
	runner := kerneltest.RunnerFunc(func(_ context.Context, vm kerneltest.VM, s kerneltest.Streams) (kerneltest.Outcome, error) {
		fmt.Fprintf(s.Console, "[    0.000000] Linux version %s\n", vm.Kernel.Name)
		switch {
		case vm.Test.Name == "timers":
			fmt.Fprintln(s.Stdout, "TAP version 13\n1..2\nok 1 posix_timers\nok 2 rtctest # SKIP no clock")
		case strings.HasPrefix(vm.Kernel.Name, "6.12"):
			fmt.Fprintln(s.Console, "[    4.200000] BUG: kernel NULL pointer dereference, address: 0000000000000008")
			return kerneltest.Outcome{Stage: kerneltest.Started, Message: "the guest crashed"}, nil
		}
		return kerneltest.Outcome{Stage: kerneltest.Exited}, nil
	})
	matrix := kerneltest.Matrix{
		Kernels: []kerneltest.Kernel{{Name: "6.1.0", Image: "old/bzImage"}, {Name: "6.12.0-rc3", Image: "new/bzImage"}},
		Tests: []kerneltest.Test{
			{Name: "timers", Command: []string{"make", "-C", "tools/testing/selftests/timers", "run_tests"}},
			{Name: "smoke", Command: []string{"./smoke.sh"}},
		},
	}
	results, err := matrix.Run(context.Background(), runner, kerneltest.Hooks{})
	if err != nil {
		fmt.Println(err)
	}
	for _, r := range results {
		fmt.Printf("%-18s %-6v %q\n", r.VM.Name(), r.Verdict, r.Reason)
	}
	fmt.Println("in all:", results.Verdict())
	// Output:
	// 6.1.0: timers      pass   "2 tests, 1 skipped"
	// 6.1.0: smoke       pass   ""
	// 6.12.0-rc3: timers pass   "2 tests, 1 skipped"
	// 6.12.0-rc3: smoke  crash  "oops: BUG: kernel NULL pointer dereference, address: 0000000000000008"
	// in all: crash
}
