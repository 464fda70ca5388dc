package disk

import (
	"slices"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	// From the oldest to the newest, as the specification's rules have it.
	all := []string{"~rc", "", "1~rc1", "1", "1-1", "1^post", "1.1", "6.9.1", "6.10.0", "6.10.0-12", "6.10.0.1", "122", "123"}
	for i, a := range all {
		for j, b := range all {
			if got := compareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q, %q: %d", a, b, got)
			}
		}
	}
}

// TestLoaderEntries: tabs and comments, counters of tries, the order and the default.
func TestLoaderEntries(t *testing.T) {
	files := mapFS{
		"loader/entries/m-6.9.conf":      "title\tNine\nversion 6.9\nsort-key x\n# options no\nlinux\t/k\ninitrd /a\ninitrd\t/b\noptions\troot=/dev/vda2\noptions quiet\ngrub_users $grub_users\n",
		"loader/entries/m-6.10+3-1.conf": "title Ten\nversion 6.10\nsort-key x\nlinux /k\n",
		"loader/entries/m-6.11+0-3.conf": "title Bad\nversion 6.11\nsort-key x\nlinux /k\n",
		"loader/entries/Z.CONF":          "title No key\nlinux /k\n",
	}
	for _, c := range []struct {
		config string
		want   []string
	}{
		{"", []string{"Ten", "Nine", "No key", "Bad"}},
		{"timeout 3\ndefault @saved\n", []string{"Ten", "Nine", "No key", "Bad"}},
		{"default\tm-*.9.conf\n", []string{"Nine", "Ten", "No key", "Bad"}},
		{"default m-6.9.*\n", []string{"Nine", "Ten", "No key", "Bad"}},
		{"default m-6.9\n", []string{"Nine", "Ten", "No key", "Bad"}},
		{"default [!m]*\n", []string{"No key", "Ten", "Nine", "Bad"}},
		{"default z.conf\n", []string{"No key", "Ten", "Nine", "Bad"}},
	} {
		files["loader/loader.conf"] = c.config
		var got []string
		entries := loaderEntries([]*fileSystem{{FS: files}})
		defaultFirst(entries) // as Entries does with all kinds
		for _, e := range entries {
			got = append(got, e.Title)
			if e.Title == "Nine" && (e.Args != "root=/dev/vda2 quiet" || !slices.Equal(e.Initrds, []string{"/a", "/b"})) {
				t.Errorf("%+v", e)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.config, got, c.want)
		}
	}
}

// TestLoaderKinds: entries for other machines and other programs are left out, paths may be as
// EFI has them, and an entry whose initial RAM disk is not there is not booted by itself.
func TestLoaderKinds(t *testing.T) {
	kernel := strings.Repeat("\x00", 0x202) + "HdrS"
	files := mapFS{"k": "kernel", "i": "initrd", "EFI/k": kernel, "shell.efi": "MZ",
		"loader/entries/arch-fallback.conf": "linux /k\ninitrd /i\n",
		"loader/entries/arch.conf":          "linux \\k\r\ninitrd \\i\r\n",
		"loader/entries/arm.conf":           "architecture aa64\nlinux /k\n",
		"loader/entries/pc.conf":            "architecture X64\nlinux /k\ninitrd /missing\nversion 9\n",
		"loader/entries/shell.conf":         "efi /shell.efi\nversion 9\n",
		"loader/entries/stub.conf":          "efi \\EFI\\k\noptions quiet\n",
	}
	entries, err := entriesOf([]*fileSystem{{FS: files}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, strings.Join(append([]string{e.ID, e.Kernel}, append(e.Initrds, e.Unclear...)...), " "))
	}
	want := []string{"stub /EFI/k", "pc /k /missing there is no /missing", "arch /k /i", "arch-fallback /k /i"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if e, err := Find(entries, "arch.conf"); err != nil || e.ID != "arch" {
		t.Errorf("%v, %v", e, err)
	}
}

// TestBareKernels: of a kernel without an initial RAM disk the root is named as the kernel by
// itself finds it.
func TestBareKernels(t *testing.T) {
	root := &fileSystem{FS: mapFS{"etc/fstab": ""}, kind: "ext4", uuid: uuid}
	boot := &fileSystem{FS: mapFS{"vmlinuz-1": "k", "vmlinuz-2": "k", "initramfs-2": "i"}, kind: "ext4", uuid: "other"}
	for want, p := range map[string]part{"/dev/vda": {}, "/dev/vda5": {number: 5}, "PARTUUID=1-2": {number: 2, uuid: "1-2"}} {
		root.part = p
		e := bareKernels([]*fileSystem{boot, root})
		if len(e) != 2 || e[0].Args != "root=UUID="+uuid+" ro" || e[1].Args != "root="+want+" ro" {
			t.Errorf("%+v", e)
		}
	}
}

// TestPlainKernels: kernels without a version count where there are no others.
func TestPlainKernels(t *testing.T) {
	for _, c := range []struct {
		files mapFS
		want  string
	}{
		{mapFS{"boot/vmlinuz": "k", "boot/initrd.img": "i", "boot/System.map": ""}, "boot/vmlinuz boot/initrd.img"},
		{mapFS{"boot/bzImage": "k"}, "boot/bzImage"},
		{mapFS{"vmlinuz": "k", "initrd.img": "i", "boot/vmlinuz-6.1": "k"}, "boot/vmlinuz-6.1"},
	} {
		var got []string
		for _, e := range bareKernels([]*fileSystem{{FS: c.files, kind: "ext4"}}) {
			got = append(append(got, e.Kernel), e.Initrds...)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v: %q, want %q", c.files, got, c.want)
		}
	}
}

func TestRootArguments(t *testing.T) {
	gpt := []part{{number: 1, uuid: "p1"}, {number: 2, kind: typeRoot, uuid: "p2"}}
	mbr := []part{{number: 1}, {number: 5}}
	for _, c := range []struct {
		args   string
		parts  []part
		initrd bool
		want   string
	}{
		{"ro root=UUID=" + uuid + " quiet", mbr, true, "ro root=UUID=" + uuid + " quiet"},
		{"ro root=UUID=" + uuid + " quiet", mbr, false, "ro root=/dev/vda5 quiet"},
		{`root="LABEL=rootfs"`, gpt, false, "root=PARTUUID=p2"},
		{"root=LABEL=rootfs", gpt, true, "root=LABEL=rootfs"},
		{"root=LABEL=other", gpt, false, "root=LABEL=other"},
		{"root=/dev/disk/by-label/rootfs", mbr, false, "root=/dev/vda5"},
		{"root=/dev/disk/by-uuid/" + uuid, gpt, false, "root=PARTUUID=p2"},
		{"root=/dev/disk/by-partuuid/P2", gpt, false, "root=PARTUUID=p2"},
		{"root=PARTUUID=elsewhere", gpt, false, "root=PARTUUID=elsewhere"},
		{"root=/dev/sda5 rw", mbr, true, "root=/dev/vda5 rw"},
		{"root=/dev/xvda2", gpt, false, "root=PARTUUID=p2"},
		{"root=/dev/nvme0n1p2", gpt, true, "root=PARTUUID=p2"},
		{"root=/dev/mmcblk0p1", gpt, true, "root=PARTUUID=p1"},
		{"root=/dev/sda", []part{{}}, true, "root=/dev/vda"},
		{"root=/dev/sda9", mbr, true, "root=/dev/sda9"},
		{"root=/dev/sdb1", mbr, true, "root=/dev/sdb1"},
		{"root=/dev/mapper/vg-root", gpt, false, "root=/dev/mapper/vg-root"},
		{"rw quiet", gpt, true, "rw quiet root=PARTUUID=p2"},
		{"rw quiet", mbr, true, "rw quiet"},
		{"rw quiet", mbr, false, "rw quiet root=/dev/vda5"},
		{"roothash=0", gpt, true, "roothash=0"},
		{"systemd.gpt_auto=0", gpt, true, "systemd.gpt_auto=0"},
	} {
		all := []*fileSystem{{FS: mapFS{}, part: c.parts[0]}}
		if last := c.parts[len(c.parts)-1]; len(c.parts) > 1 {
			all = append(all, &fileSystem{FS: mapFS{"etc/fstab": ""}, part: last, uuid: uuid, label: "rootfs"})
		}
		if got := rootArguments(c.args, all, c.parts, c.initrd); got != c.want {
			t.Errorf("%s: %s, want %s", c.args, got, c.want)
		}
	}
}
