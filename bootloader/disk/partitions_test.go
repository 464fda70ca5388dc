package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const esp = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

// TestPartitions reads the tables that sfdisk writes.
func TestPartitions(t *testing.T) {
	const sectors, size = 512, 40 << 20
	guidOf := "0fc63daf-8483-4772-8e79-3d69d8477de4"
	for _, c := range []struct {
		name, script string
		args         []string
		want         []part
	}{
		{"mbr", "label: dos\nlabel-id: 0x12abcdef\n1: start=2048,size=4096,type=83\n3: start=8192,size=100,type=c\n", nil,
			[]part{{1, 2048, 4096, "", "12abcdef-01", false}, {3, 8192, 100, "", "12abcdef-03", false}}},
		{"logical", "label: dos\nlabel-id: 0x12abcdef\n1: start=2048,size=4096,type=83\n2: start=8192,size=60000,type=5\n5: start=10240,size=16384,type=83\n6: start=30720,size=2048,type=82\n7: start=40960,size=2048,type=83\n", nil,
			[]part{{1, 2048, 4096, "", "12abcdef-01", false}, {5, 10240, 16384, "", "12abcdef-05", false}, {6, 30720, 2048, "", "12abcdef-06", false}, {7, 40960, 2048, "", "12abcdef-07", false}}},
		{"gpt", "label: gpt\n1: start=2048,size=2048,type=" + esp + ",uuid=11111111-2222-3333-4444-5555555555AA\n4: start=4096,size=4096,type=" + typeRoot + ",uuid=" + uuid + "\n", nil,
			[]part{{1, 2048, 2048, esp, "11111111-2222-3333-4444-5555555555aa", false}, {4, 4096, 4096, typeRoot, uuid, false}}},
		{"gpt4096", "label: gpt\n1: start=256,size=512,uuid=" + uuid + "\n", []string{"--sector-size", "4096"}, []part{{1, 2048, 4096, guidOf, uuid, false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := sparse(t, size)
			table := exec.Command("sfdisk", append(append([]string{"-q"}, c.args...), disk)...)
			table.Stdin = strings.NewReader(c.script)
			if out, err := table.CombinedOutput(); err != nil {
				if strings.Contains(string(out), "unrecognized option") {
					t.Skipf("this sfdisk has no %v", c.args)
				}
				t.Fatalf("sfdisk: %v\n%s", err, out)
			}
			b, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			for i := range c.want {
				c.want[i].start *= sectors
				c.want[i].size *= sectors
			}
			check := func() {
				if got := partitions(bytes.NewReader(b), size); !slices.Equal(got, c.want) {
					t.Errorf("%+v\nwant %+v", got, c.want)
				}
			}
			check()
			if strings.HasPrefix(c.name, "gpt") {
				clear(b[512:8192]) // the copy at the end is there yet
				check()
			}
		})
	}
}

// TestPartitionLoop: a chain of logical partitions that leads back ends.
func TestPartitionLoop(t *testing.T) {
	b := make([]byte, 64<<10)
	entry := func(at, index int, kind byte, start, size uint32) {
		e := b[at*sector+mbrTable+index*mbrEntry:]
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], start)
		binary.LittleEndian.PutUint32(e[12:], size)
		binary.LittleEndian.PutUint16(b[at*sector+mbrMagicAt:], mbrMagic)
	}
	entry(0, 0, 5, 4, 100)
	entry(4, 0, 0x83, 1, 2)
	entry(4, 1, 5, 8, 10)
	entry(12, 0, 0x83, 1, 2)
	entry(12, 1, 5, 8, 10)
	if got := partitions(bytes.NewReader(b), int64(len(b))); len(got) < 2 || len(got) > maxPartitions {
		t.Errorf("%d partitions", len(got))
	}
}

// FuzzPartitions changes bytes of the tables.
func FuzzPartitions(f *testing.F) {
	good := make([]byte, 64<<10)
	copy(good[mbrMagicAt:], "\x55\xaa")
	good[mbrTable+4] = mbrGPT
	copy(good[512:], gptMagic)
	good[512+gptEntryLBA], good[512+gptEntries], good[512+gptEntrySize] = 2, 128, 128
	copy(good[1024:], fmt.Sprintf("%32s\x20\x00\x00\x00\x00\x00\x00\x00\x30", ""))
	if got := partitions(bytes.NewReader(good), int64(len(good))); len(got) != 1 || got[0].number != 1 {
		f.Fatalf("%+v", got)
	}
	f.Add(uint16(mbrTable+4), []byte{5, 0, 0, 0, 1})
	f.Add(uint16(512+gptEntryLBA), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint16, change []byte) {
		b := bytes.Clone(good)
		copy(b[at:], change)
		size := int64(len(b))
		for _, p := range partitions(bytes.NewReader(b), size) {
			if p.start < 0 || p.size <= 0 || p.start+p.size > size {
				t.Errorf("%+v", p)
			}
		}
	})
}

// TestManyUnread has an error tell of a few of many partitions.
func TestManyUnread(t *testing.T) {
	for n, want := range map[int]string{
		1: "partition 1: a", 5: "partition 5: a", 6: "partition 4: a", 100: "; and so on with 96 others",
	} {
		var parts []part
		for i := range n {
			parts = append(parts, part{number: i + 1, member: true})
		}
		_, err := fileSystems(bytes.NewReader(nil), parts)
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 600 {
			t.Errorf("%d: %v", n, err)
		}
	}
}
