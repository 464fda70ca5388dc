package disk

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// twoParts makes a disk with two file systems: the first has the label BOOT.
func twoParts(t *testing.T, boot, root map[string]string) string {
	t.Helper()
	disk := sparse(t, 20<<20)
	table := exec.Command("sfdisk", "-q", disk)
	table.Stdin = strings.NewReader("label: gpt\nstart=2048,size=16384\nstart=20480,size=16384\n")
	if out, err := table.CombinedOutput(); err != nil {
		t.Skipf("sfdisk: %v\n%s", err, out)
	}
	run(t, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", "BOOT", "-d", tree(t, boot), "-E", "offset=1048576", disk, "8m")
	makeExt4(t, disk, tree(t, root), 20480*512, 8<<20)
	return disk
}

// TestGRUB has what scripts say of devices, of the default, and what is not understood.
func TestGRUB(t *testing.T) {
	const script = `load_env
set default="${saved_entry}"
menuentry unclear --id u { linux /vmlinuz root=$nowhere }
menuentry plain --id p { linux /vmlinuz root=1 }
submenu Old --id o {
	menuentry 'far away' --id f { search --label BOOT --set=b; linux ($b)/vmlinuz root=2; initrd ($b)/initrd (hd0,gpt2)/more }
	menuentry gone { linux /gone }
}
`
	environment := func(saved string) string { return "# GRUB Environment Block\nsaved_entry=" + saved + "\n####" }
	for saved, want := range map[string][]string{
		"p":   {"plain", "unclear", "far away"},
		"o>f": {"far away", "unclear", "plain"},
		"u":   {"plain", "unclear", "far away"}, // what is not understood is not started unasked
		"":    {"plain", "unclear", "far away"},
		"1":   {"plain", "unclear", "far away"},
		"2>0": {"far away", "unclear", "plain"},
	} {
		all := entries(t, twoParts(t, map[string]string{"vmlinuz": "boot's", "initrd": "first", "more": "wrong", "EFI/x/grub.cfg": "search --fs-uuid --set=root " + uuid + "\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n"},
			map[string]string{"vmlinuz": "root's", "more": "second", "grub/grub.cfg": script, "grub/grubenv": environment(saved)}))
		var got []string
		for _, e := range all {
			got = append(got, e.Title)
		}
		if !slices.Equal(got, want) {
			t.Errorf("saved_entry=%s: %q, want %q", saved, got, want)
			continue
		}
		if e, err := Default(all); err != nil || e != all[0] {
			t.Errorf("the default: %v, %v", e, err)
		}
		for _, name := range []string{"far away", "o>f", "Old>far away"} {
			e, err := Find(all, name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			kernel, initrds, err := e.Load()
			if text := fmt.Sprintf("%s %s", kernel, initrds); err != nil || text != "boot's [first second]" || len(e.Unclear) > 0 {
				t.Errorf("%s: %s, %v, %q", name, text, err, e.Unclear)
			}
		}
		if e, err := Find(all, "u"); err != nil || len(e.Unclear) != 1 || !strings.Contains(e.Unclear[0], "nowhere") {
			t.Errorf("%v, %v", e, err)
		}
	}
}

// TestUnclear: entries none of which is understood are listed, and none is the default.
func TestUnclear(t *testing.T) {
	for _, linux := range []string{"linux (hd1,gpt1)/vmlinuz", "linux /vmlinuz $nowhere", "frob; linux /vmlinuz"} {
		disk := sparse(t, 8<<20)
		makeExt4(t, disk, tree(t, map[string]string{"vmlinuz": "kernel", "grub/grub.cfg": "default=b; menuentry a { " + linux + " }\nmenuentry b { " + linux + " }\n"}), 0, 8<<20)
		all := entries(t, disk)
		if len(all) != 2 || len(all[0].Unclear) != 1 {
			t.Errorf("%s: %+v", linux, all[0])
		}
		if e, err := Default(all); !errors.Is(err, ErrUnclear) || !strings.Contains(err.Error(), "1: b: ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", linux, e, err)
		}
		if k, _, err := all[0].Load(); err != nil || string(k) != "kernel" {
			t.Errorf("%s: %q, %v", linux, k, err)
		}
	}
}
