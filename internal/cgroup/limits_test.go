package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		l     Limits
		field string // that is wrong
		needs string
		text  string
	}{
		"none":        {},
		"all":         {l: Limits{CPUs: 0.5, Memory: 3 << 29, PIDs: 9, IO: []IO{{Path: "/x", WriteIOPS: 1}}}, needs: everything, text: "cpu 0.5, memory 1536M, pids 9, io /x wiops=1"},
		"least CPU":   {l: Limits{CPUs: MinCPUs}, needs: "cpu", text: "cpu 0.01"},
		"too little":  {l: Limits{CPUs: 0.009}, field: "CPUs"},
		"negative":    {l: Limits{CPUs: -1}, field: "CPUs"},
		"not a CPU":   {l: Limits{CPUs: math.NaN()}, field: "CPUs"},
		"endless CPU": {l: Limits{CPUs: math.Inf(1)}, field: "CPUs"},
		"no thread":   {l: Limits{PIDs: -1}, field: "PIDs"},
		"no path":     {l: Limits{IO: []IO{{ReadBPS: 1}}}, field: "IO"},
		"no rate":     {l: Limits{IO: []IO{{Path: "/x"}}}, field: "IO"},
		"bad rate":    {l: Limits{IO: []IO{{Path: "/x", ReadBPS: 1, WriteBPS: -1}}}, field: "IO"},
		"writeback":   {l: Limits{IO: []IO{{Path: "/x", ReadBPS: 1}}}, needs: "memory io", text: "io /x rbps=1"},
	} {
		field, err := c.l.Check()
		if field != c.field || (err != nil) != (c.field != "") {
			t.Errorf("%s: wrong is %q, %v", name, field, err)
		}
		if needs := strings.Join(c.l.controllers(), " "); c.field == "" && (needs != c.needs || c.l.String() != c.text || c.l.IsZero() != (c.needs == "")) {
			t.Errorf("%s: needs %q, %q", name, needs, c.l.String())
		}
	}
}

func TestSettings(t *testing.T) {
	h, _ := tree(t, "", "")
	out, err := h.settings(&Limits{CPUs: 0.29, Memory: 1 << 40, PIDs: 7})
	want := []setting{{"cpu.max", "29000 100000", false}, {"memory.max", "1099511627776", false}, {"memory.swap.max", "0", true}, {"pids.max", "7", false}}
	if err != nil || !reflect.DeepEqual(out, want) {
		t.Errorf("%v, %v", out, err)
	}
	for _, path := range []string{"/proc", "/dev/null/x", filepath.Join(h.root, "none")} {
		if out, err := h.settings(&Limits{IO: []IO{{Path: path, ReadBPS: 1}}}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v", path, out, err)
		}
	}
	// A disk with a partition, as sysfs has them.
	put(t, h.path("/sys/devices/pci0/sda"), "dev", "8:0\n")
	put(t, h.path("/sys/devices/pci0/sda/sda1"), "dev", "8:1\n")
	put(t, h.path("/sys/devices/pci0/sda/sda1"), "partition", "1\n")
	put(t, h.path("/sys/dev/block"), "x", "")
	for link, to := range map[string]string{"8:0": "sda", "8:1": "sda/sda1"} {
		if err := os.Symlink("../../devices/pci0/"+to, h.path("/sys/dev/block/"+link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, device := range []string{"8:0", "8:1"} {
		if disk := h.wholeDisk(device); disk != "8:0" {
			t.Errorf("%s is of disk %s", device, disk)
		}
	}
	if disk := h.wholeDisk("253:3"); disk != "253:3" {
		t.Errorf("a device without partitions: %s", disk)
	}
}

func TestParseIO(t *testing.T) {
	for text, want := range map[string]IO{
		"/dev/sda:wbps=20M":                        {Path: "/dev/sda", WriteBPS: 20 << 20},
		"a:b:rbps=1,wbps=2k,riops=3,wiops=4":       {Path: "a:b", ReadBPS: 1, WriteBPS: 2048, ReadIOPS: 3, WriteIOPS: 4},
		"disk.qcow2:riops=100,riops=200":           {Path: "disk.qcow2", ReadIOPS: 200},
		"/dev/disk/by-path/pci-0:1-scsi-0:wiops=9": {Path: "/dev/disk/by-path/pci-0:1-scsi-0", WriteIOPS: 9},
	} {
		if l, err := ParseIO(text); err != nil || l != want {
			t.Errorf("%q: %+v, %v", text, l, err)
		}
	}
	for _, text := range []string{"", ":", "x", "x:", ":wbps=1", "x:wbps", "x:wbps=", "x:wbps=0", "x:wbps=-1", "x:bps=1", "x:wbps=1,", "x:wbps=99999999999999999999"} {
		if l, err := ParseIO(text); err == nil {
			t.Errorf("%q: %+v", text, l)
		}
	}
}

func TestParseMounts(t *testing.T) {
	text := "24 30 0:22 / /sys rw,nosuid - sysfs sysfs rw\n" +
		"36 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
		"31 23 0:28 /a\\040b /mnt\\134x\\040y rw,relatime shared:4 master:1 - cgroup2 none rw\n" +
		"short\n31 23 0:28 / /y rw - \n31 23 0:28 / - cgroup2 x\n"
	if got := parseMounts(text); !reflect.DeepEqual(got, []mount{{"/a b", `/mnt\x y`}}) {
		t.Errorf("%q", got)
	}
	for in, want := range map[string]string{"": "", "0::/\n": "/", "0::/a/b\n": "/a/b", "1:cpu:/x\n0::/a b:c\n": "/a b:c", "0::/../a\n": "", "0::/a/..b\n": "/a/..b", "0::\n": ""} {
		if got := parseSelf(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if e := parseEvents("low 0\noom 2\noom_kill 1\nx\ny z\n"); len(e) != 3 || e["oom_kill"] != 1 {
		t.Errorf("%v", e)
	}
}

// FuzzParse reads what the kernel and users write: what is read can be used.
func FuzzParse(f *testing.F) {
	f.Add("31 23 0:28 /a\\040b /mnt rw - cgroup2 none rw\n")
	f.Add("0::/user.slice/x.scope\n")
	f.Add("/dev/sda:rbps=1M,wiops=5")
	f.Add("oom_kill 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		parseMounts(text)
		parseEvents(text)
		if p := parseSelf(text); p != "" && (!filepath.IsAbs(p) || strings.Contains(p+"/", "/../")) {
			t.Errorf("a group %q", p)
		}
		if l, err := ParseIO(text); err == nil {
			if _, err := (&Limits{IO: []IO{l}}).Check(); err != nil {
				t.Errorf("%q is read, but wrong: %v", text, err)
			}
			if again, err := ParseIO(l.Path + ":" + strings.ReplaceAll(l.text()[1:], " ", ",")); err != nil || again != l {
				t.Errorf("%q is %+v, and then %+v, %v", text, l, again, err)
			}
		}
	})
}
