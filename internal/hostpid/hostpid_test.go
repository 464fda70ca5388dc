package hostpid

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tellVariable has this program tell what it knows of itself.
const tellVariable = "VMM_HOSTPID_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(tellVariable) != "" {
		fmt.Println(os.Getpid(), Self(), Own(), Tells(), Exists(Self()), Exists(1<<30))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestSelf compares what a process says of itself with what its starter knows.
func TestSelf(t *testing.T) {
	if !Tells() {
		t.Skip("/proc is not of this namespace of processes")
	}
	for name, try := range map[string]struct {
		flags uintptr
		want  string // %d is the number that the starter knows
	}{
		"here":           {0, "%[1]d %[1]d false true true false\n"},
		"in a namespace": {unix.CLONE_NEWPID, "1 %d true false true false\n"},
	} {
		t.Run(name, func(t *testing.T) {
			attr := &syscall.SysProcAttr{Cloneflags: try.flags}
			if id := []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}; try.flags != 0 && os.Getuid() != 0 {
				attr.Cloneflags, attr.UidMappings = try.flags|unix.CLONE_NEWUSER, id
			}
			c := exec.Command("/proc/self/exe")
			c.Env, c.SysProcAttr = []string{tellVariable + "=1"}, attr
			var out bytes.Buffer
			c.Stdout = &out
			if err := c.Start(); err != nil {
				t.Skipf("this host allows no such namespace: %v", err)
			}
			if err, want := c.Wait(), fmt.Sprintf(try.want, c.Process.Pid); err != nil || out.String() != want {
				t.Errorf("%q, %v; want %q", out.String(), err, want)
			}
		})
	}
}
