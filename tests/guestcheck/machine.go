package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func cpus(want map[string]string) error {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return err
	}
	n := number(want, "cpus")
	expect := fmt.Sprintf("0-%d", n-1)
	if n == 1 {
		expect = "0"
	}
	if got := strings.TrimSpace(string(b)); got != expect || int64(runtime.NumCPU()) != n {
		return fmt.Errorf("online: %q and %d, want %q", got, runtime.NumCPU(), expect)
	}
	return nil
}

// memory compares MemTotal, of which the kernel has taken its part.
func memory(want map[string]string) error {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	kib, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	mib := number(want, "mib")
	if err != nil || kib>>10 > mib || kib>>10 < mib*90/100-32 {
		return fmt.Errorf("MemTotal %d MiB, want nearly %d", kib>>10, mib)
	}
	return nil
}

// date allows for the time that the test itself takes.
func date(want map[string]string) error {
	host := time.Unix(number(want, "now"), 0)
	if d := time.Since(host); d < -2*time.Minute || d > time.Hour {
		return fmt.Errorf("the guest's time is %v, the host's was %v", time.Now().UTC(), host.UTC())
	}
	return nil
}

// processes starts many, one by one and side by side.
func processes(want map[string]string) error {
	n := 100
	errs := make(chan error, 4)
	for w := range 4 {
		go func() {
			for i := range n {
				status := (w*n + i) % 200
				err := exec.Command("/bin/sh", "-c", fmt.Sprintf("exit %d", status)).Run()
				var exit *exec.ExitError
				if errors.As(err, &exit) && exit.ExitCode() == status || err == nil && status == 0 {
					continue
				}
				errs <- fmt.Errorf("exit %d: %v", status, err)
				return
			}
			errs <- nil
		}()
	}
	var all []error
	for range 4 {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// pipes sends data through several processes and looks at what arrives.
func pipes(map[string]string) error {
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	c := exec.Command("/bin/sh", "-c", "cat | gzip -1 | cat | gunzip | cat")
	c.Stdin = bytes.NewReader(data)
	out, err := c.Output()
	if err == nil && !bytes.Equal(out, data) {
		err = fmt.Errorf("%d bytes came back, or others, of %d", len(out), len(data))
	}
	return err
}

// libc lets busybox, which is linked to the GNU C library, compute.
func libc(map[string]string) error {
	for script, want := range map[string]string{
		`awk 'BEGIN{s=0; for(i=1;i<=200000;i++) s+=1/(i*i); printf "%.9f", s}'`: "1.644929067",
		`seq 1 50000 | sort -rn | head -1`:                                      "50000",
		`seq 1 20000 | sha256sum | cut -c1-16`:                                  "f6351f5ead9a700e",
		`echo 'scale=20; 4*a(1)' | bc -l`:                                       "3.14159265358979323844",
	} {
		out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			return fmt.Errorf("%s: %q %v, want %q", script, got, err, want)
		}
	}
	return nil
}

// sse computes the same sum in many goroutines at once.
func sse(map[string]string) error {
	sum := func() float64 {
		s := 0.0
		for i := 1; i < 3000000; i++ {
			s += math.Sqrt(float64(i)) / float64(i+1)
		}
		return s
	}
	want := sum()
	got := make(chan float64, 6)
	for range cap(got) {
		go func() { got <- sum() }()
	}
	for range cap(got) {
		if v := <-got; v != want {
			return fmt.Errorf("%v, want %v", v, want)
		}
	}
	return nil
}

// devices looks for what the platform promises.
func devices(map[string]string) error {
	for _, path := range []string{
		"/sys/bus/pci/devices/0000:00:00.0/vendor",
		"/sys/class/rtc/rtc0/time",
		"/sys/bus/acpi/devices/QEMU0001:00",
		"/dev/ttyS0",
	} {
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	return nil
}
