package grub

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// env is an environment block.
func env(lines string) string { return envSignature + lines + strings.Repeat("#", 100) }

// TestDistributions has configurations in the shapes that distributions give them.
func TestDistributions(t *testing.T) {
	const debian = "boot/vmlinuz-6.1.0-18-amd64"
	for _, c := range []struct {
		config, at string
		boot, root fstest.MapFS // hd0,gpt1 and hd0,gpt2
		want       []string     // entries, as show shows them
	}{
		{"debian", "boot/grub", nil, device(nil, debian, "boot/initrd.img-6.1.0-18-amd64"), []string{
			"*Debian GNU/Linux | gnulinux-simple-U-hd0,gpt2 | (hd0,gpt2)/boot/vmlinuz-6.1.0-18-amd64 root=UUID=U-hd0,gpt2 ro quiet + (hd0,gpt2)/boot/initrd.img-6.1.0-18-amd64",
			"Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-18-amd64 | gnulinux-advanced-U-hd0,gpt2>gnulinux-6.1.0-18-amd64-advanced-U-hd0,gpt2 | (hd0,gpt2)/boot/vmlinuz-6.1.0-18-amd64 root=UUID=U-hd0,gpt2 ro quiet + (hd0,gpt2)/boot/initrd.img-6.1.0-18-amd64",
			"Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-18-amd64 (recovery mode) | gnulinux-advanced-U-hd0,gpt2>gnulinux-6.1.0-18-amd64-recovery-U-hd0,gpt2 | (hd0,gpt2)/boot/vmlinuz-6.1.0-18-amd64 root=UUID=U-hd0,gpt2 ro single + (hd0,gpt2)/boot/initrd.img-6.1.0-18-amd64"}},
		{"debian", "boot/grub", nil, device(map[string]string{"boot/grub/grubenv": env("saved_entry=gnulinux-advanced-U-hd0,gpt2>gnulinux-6.1.0-18-amd64-recovery-U-hd0,gpt2\n")}, debian), []string{
			"Debian GNU/Linux |", "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-18-amd64 |", "*Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-18-amd64 (recovery mode) |"}},
		{"fedora", "grub2", nil, device(map[string]string{
			"grub2/grubenv":                   env("saved_entry=m-6.8.5\nboot_success=1\nkernelopts=root=UUID=1 ro rhgb\n"),
			"loader/entries/m-6.8.5.conf":     "Fedora Linux (6.8.5)\n/vmlinuz-6.8.5\n/initramfs-6.8.5.img $tuned_initrd\n$kernelopts $tuned_params quiet",
			"loader/entries/m-6.9.1.conf":     "Fedora Linux (6.9.1)\n/vmlinuz-6.9.1\n/initramfs-6.9.1.img\nroot=UUID=1 ${kernelopts}",
			"loader/entries/m-0-rescue.conf":  "Fedora Linux (0-rescue)\n/vmlinuz-6.8.5\n\n$nothing ro",
			"loader/entries/not-an-entry.txt": ""}, "vmlinuz-6.8.5", "vmlinuz-6.9.1", "initramfs-6.8.5.img", "initramfs-6.9.1.img"), []string{
			"Fedora Linux (6.9.1) | m-6.9.1 | (hd0,gpt2)/vmlinuz-6.9.1 root=UUID=1 root=UUID=1 ro rhgb + (hd0,gpt2)/initramfs-6.9.1.img",
			"*Fedora Linux (6.8.5) | m-6.8.5 | (hd0,gpt2)/vmlinuz-6.8.5 root=UUID=1 ro rhgb quiet + (hd0,gpt2)/initramfs-6.8.5.img",
			"Fedora Linux (0-rescue) | m-0-rescue | (hd0,gpt2)/vmlinuz-6.8.5 ro ? linux: the variable nothing is not set"}},
		{"opensuse", "boot/grub2", nil, device(map[string]string{"boot/grub2/grubenv": env("env_block=/other\n"), "other": env("saved_entry=Advanced options for openSUSE Leap 15.5>openSUSE Leap 15.5, with Linux 5.14.21-default\n")},
			"boot/vmlinuz-5.14.21-default", "boot/initrd-5.14.21-default"), []string{
			"openSUSE Leap 15.5 | gnulinux-simple-1 | (hd0,gpt2)/boot/vmlinuz-5.14.21-default root=UUID=1 splash=silent mitigations=auto quiet + (hd0,gpt2)/boot/initrd-5.14.21-default",
			"*Advanced options for openSUSE Leap 15.5>openSUSE Leap 15.5, with Linux 5.14.21-default | gnulinux-advanced-1>gnulinux-5.14.21-default-advanced-1 |"}},
		{"arch", "boot/grub", device(nil, "vmlinuz-linux", "amd-ucode.img", "intel-ucode.img", "initramfs-linux.img"), device(nil), []string{
			"*Arch Linux | gnulinux-simple-1 | (hd0,gpt1)/vmlinuz-linux root=UUID=1 rw loglevel=3 quiet + (hd0,gpt1)/amd-ucode.img + (hd0,gpt1)/intel-ucode.img + (hd0,gpt1)/initramfs-linux.img",
			"Advanced options for Arch Linux>Arch Linux, with Linux linux (fallback initramfs) | gnulinux-advanced-1>gnulinux-linux-fallback-1 | (hd0,gpt2)/vmlinuz-linux root=UUID=1 rw"}},
		{"ubuntu", "boot/grub", nil, device(map[string]string{"boot/grub/gfxblacklist.txt": ""}, "boot/vmlinuz-6.8.0-31-generic", "boot/initrd.img-6.8.0-31-generic", "boot/vmlinuz-6.5.0-9-generic", "boot/initrd.img-6.5.0-9-generic"), []string{
			"Ubuntu | gnulinux-simple-1 | (hd0,gpt2)/boot/vmlinuz-6.8.0-31-generic root=PARTUUID=P-1 ro console=tty1 console=ttyS0 panic=-1",
			"Advanced options for Ubuntu>Ubuntu, with Linux 6.8.0-31-generic | gnulinux-advanced-1>gnulinux-6.8.0-31-generic-advanced-1 | (hd0,gpt2)/boot/vmlinuz-6.8.0-31-generic root=PARTUUID=P-1 ro quiet splash vt.handoff=7 + (hd0,gpt2)/boot/initrd.img-6.8.0-31-generic",
			"Advanced options for Ubuntu>Ubuntu, with Linux 6.8.0-31-generic (recovery mode) |",
			"*Advanced options for Ubuntu>Ubuntu, with Linux 6.5.0-9-generic | gnulinux-advanced-1>gnulinux-6.5.0-9-generic-advanced-1 | (hd0,gpt2)/boot/vmlinuz-6.5.0-9-generic root=PARTUUID=P-1 ro quiet splash vt.handoff=7 + (hd0,gpt2)/boot/initrd.img-6.5.0-9-generic",
			"Memory test (memtest86+x64.bin) |"}},
	} {
		t.Run(c.config, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", c.config+".cfg"))
			if err != nil {
				t.Fatal(err)
			}
			c.root[c.at+"/grub.cfg"] = &fstest.MapFile{Data: b}
			// From the stub that lies on the EFI system partition.
			esp := device(map[string]string{"EFI/x/grub.cfg": "search.fs_uuid U-hd0,gpt2 root hd0,gpt2\nset prefix=($root)'/" + c.at + "'\nconfigfile $prefix/grub.cfg\n"})
			for name, f := range c.boot {
				esp[name] = f
			}
			d := testDisk{"hd0,gpt1": esp, "hd0,gpt2": c.root}
			for _, from := range []File{{"hd0,gpt2", c.at + "/grub.cfg"}, {"hd0,gpt1", "EFI/x/grub.cfg"}} {
				m, err := Run(d, from.Device, from.Path, from.Device == "hd0,gpt1")
				if err != nil {
					t.Fatal(err)
				}
				got := strings.Split(strings.TrimSuffix(show(m), "\n"), "\n")
				if len(got) != len(c.want) {
					t.Fatalf("%s: got\n%s", from.Path, strings.Join(got, "\n"))
				}
				for i := range got {
					if !strings.HasPrefix(got[i], c.want[i]) || strings.HasSuffix(c.want[i], "img") && got[i] != c.want[i] {
						t.Errorf("%s: got\n%s\nwant\n%s", from.Path, got[i], c.want[i])
					}
				}
			}
		})
	}
}

// TestHostile has scripts that would take all of the memory or time.
func TestHostile(t *testing.T) {
	for name, script := range map[string]string{
		"doubles":      "x=aaaaaaaa; while true; do x=$x$x; done",
		"recursion":    "function f { f; f; }; f",
		"sources":      "source /grub.cfg; source /grub.cfg",
		"configs":      "configfile /grub.cfg",
		"eval":         "x='eval $x; eval $x'; eval $x",
		"menus":        "function f { submenu a { f } ; submenu b { f } }; f",
		"entries":      "while true; do menuentry a { linux /k }; done",
		"in an entry":  "menuentry a { linux /k; while true; do true; done }\nmenuentry b { linux /k; configfile /grub.cfg }",
		"blocks":       strings.Repeat("menuentry a {", 100000),
		"ifs":          strings.Repeat("if ", 100000),
		"parentheses":  "if [ " + strings.Repeat("( ", 10000) + " ]; then x=1; fi",
		"exclamations": "if [ " + strings.Repeat("! ", 10000) + " ]; then x=1; fi",
		"variables":    "for a in " + strings.Repeat("x", 60000) + "; do while true; do set $a=$a; a=y$a; done; done",
		"functions":    "while true; do x=a$x; eval \"function $x { true; }\"; done; menuentry a { linux /k }",
		"titles":       "x=" + strings.Repeat("x", 30000) + "; export x; function f { submenu $x { f; menuentry $x$x { linux /k } } }; f",
		"search":       "while true; do search --file /gone; done",
		"quotes":       strings.Repeat("'\n", 100001),
		"large":        strings.Repeat("#", maxScript+1),
	} {
		t.Run(name, func(t *testing.T) {
			d := testDisk{"hd0": device(map[string]string{"grub.cfg": script}, "k")}
			m, err := Run(d, "hd0", "grub.cfg", false)
			if err != nil && !errors.Is(err, ErrNoScript) {
				t.Error(err)
			}
			if m != nil && len(m.Entries) > maxEntries {
				t.Errorf("%d entries", len(m.Entries))
			}
		})
	}
}

func seeds(f *testing.F) {
	names, err := filepath.Glob("testdata/*.cfg")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("x='a' ; for i in $x \"b $x\"; do menuentry $i { linux ($root)/k \\\n $1; initrd /i } ; done # end")
}

// FuzzParse gives any text to the parser.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, script string) {
		if _, faults := parse(script); len(faults) > maxFaults {
			t.Error(faults)
		}
		parseEnv(envSignature + script)
	})
}

// FuzzRun runs any text.
func FuzzRun(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, script string) {
		d := testDisk{"hd0": device(map[string]string{"grub.cfg": script, "grubenv": envSignature + script, "loader/entries/a.conf": "a\n/k\n/i $x\n" + strings.ReplaceAll(script, "\n", " ")}, "k", "i")}
		m, err := Run(d, "hd0", "grub.cfg", false)
		if err != nil {
			return
		}
		for _, e := range m.Entries {
			if strings.ContainsAny(e.Title+e.Args+strings.Join(e.NotUnderstood, ""), "\n") {
				t.Errorf("lines: %+v", e)
			}
		}
	})
}
