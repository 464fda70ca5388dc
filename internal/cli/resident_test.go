package cli

import (
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestUnchanged(t *testing.T) {
	const smaps = `00300000-00400000 r-xp 00000000 fe:01 77                 /elsewhere
Anonymous:             0 kB
00400000-00c0c000 r-xp 00000000 fe:00 77                 /usr/bin/a name (deleted)
Size:               8240 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00c0c000-0162b000 r--p 0080c000 fe:00 77                 /usr/bin/a name (deleted)
Rss:                7356 kB
Anonymous:             0 kB
0162b000-01692000 rw-p 0122b000 fe:00 77                 /usr/bin/a name (deleted)
Anonymous:             0 kB
nonsense

01692000-01693000 r--s 00000000 fe:00 77                 /usr/bin/a name (deleted)
Anonymous:             0 kB
01693000-01694000 r--p 00004000 fe:00 77                 /usr/bin/a name (deleted)
Anonymous:             4 kB
01694000-01695000 r--p 00003000 fe:00 77                 /usr/bin/a name (deleted)
Anonymous:             0 kB
01695000-037e2000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f0000001000-7f0000002000 r--p 00000000 fe:00 77         /usr/bin/a name (deleted)
Anonymous:             0 kB
`
	program := []mapping{{0x400000, 0xc0c000, "fe:00 77"}, {0xc0c000, 0x162b000, "fe:00 77"}, {0x1694000, 0x1695000, "fe:00 77"}}
	for _, test := range []struct {
		name string
		code uint64
		want []mapping
	}{
		{"in the program", 0x48ada0, program},
		{"its first byte", 0x400000, program},
		{"before all", 0x2fffff, nil},
		{"made by this process", 0x1695010, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := unchanged(strings.NewReader(smaps), test.code); !slices.Equal(got, test.want) {
				t.Errorf("%#x, want %#x", got, test.want)
			}
		})
	}
}

// TestForgetProgram wants pages of the program to be resident no more, and the program to go on.
func TestForgetProgram(t *testing.T) {
	resident := func() (kb int) {
		code := uint64(reflect.ValueOf(forgetProgram).Pointer())
		in := false
		smaps, err := os.ReadFile("/proc/self/smaps")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(smaps)) {
			fields := strings.Fields(line)
			if from, to, ok := strings.Cut(fields[0], "-"); ok {
				begin, _ := strconv.ParseUint(from, 16, 64)
				end, _ := strconv.ParseUint(to, 16, 64)
				in = begin <= code && code < end
			} else if in && fields[0] == "Rss:" {
				kb, _ = strconv.Atoi(fields[1])
			}
		}
		return kb
	}
	Command() // touches much
	before := resident()
	forgetProgram()
	if after := resident(); after > before*3/4 {
		t.Errorf("%d KiB of code are resident, and were %d before", after, before)
	}
}
