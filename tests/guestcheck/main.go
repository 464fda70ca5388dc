// Command guestcheck runs inside a test's guest and reports, a line a check,
// whether the machine that it sees works: "CHECK name ok", or "CHECK name
// FAIL reason". Its last line is "CHECKS DONE".
//
// What it expects comes as arguments: name=value; skip names checks to leave
// out, with commas, and only is the one to do; disks=N makes the checks those of
// disks, net=1 those of the network, share=PATH those of a shared directory, vsock=PORT
// those of sockets to the host; endure=FILE keeps the guest busy instead, and tree=DIR
// prints the files that are there.
package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// check is one property of the guest.
type check struct {
	name string
	run  func(want map[string]string) error
}

var checks = []check{
	{"cpus", cpus},
	{"memory", memory},
	{"date", date},
	{"processes", processes},
	{"pipes", pipes},
	{"signals", signals},
	{"faults", faults},
	{"stepping", stepping},
	{"threads", threads},
	{"timers", timers},
	{"clock", clock},
	{"mappings", mappings},
	{"sse", sse},
	{"avx", avx},
	{"libc", libc},
	{"devices", devices},
}

func main() {
	want := map[string]string{}
	for _, a := range os.Args[1:] {
		k, v, _ := strings.Cut(a, "=")
		want[k] = v
	}
	switch {
	case want["disks"] != "":
		checks = diskChecks
	case want["net"] != "":
		checks = netChecks
	case want["share"] != "":
		checks = shareChecks
	case want["vsock"] != "":
		checks = vsockChecks
	case want["endure"] != "":
		checks = []check{{"endure", endure}}
	case want["tree"] != "":
		checks = []check{{"tree", tree}}
	}
	for _, c := range checks {
		if slices.Contains(strings.Split(want["skip"], ","), c.name) || want["only"] != "" && want["only"] != c.name {
			continue
		}
		if err := c.run(want); err != nil {
			fmt.Printf("CHECK %s FAIL %s\n", c.name, strings.ReplaceAll(err.Error(), "\n", " | "))
		} else {
			fmt.Printf("CHECK %s ok\n", c.name)
		}
	}
	fmt.Println("CHECKS DONE")
}

func number(want map[string]string, name string) int64 {
	n, _ := strconv.ParseInt(want[name], 10, 64)
	return n
}
