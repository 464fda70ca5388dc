package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const uuid = "11111111-2222-3333-4444-555555555555"

var grubConfig = `set default="0"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
fi
search --no-floppy --fs-uuid --set=root ` + uuid + `
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
	load_video
	insmod gzio
	linux	/boot/vmlinuz-6.1 root=UUID=` + uuid + ` ro quiet $vt_handoff
	initrd	/boot/initrd.img-6.1
}
submenu 'Advanced options' {
	menuentry 'Debian GNU/Linux, recovery' {
		linux	/boot/vmlinuz-6.1 root=UUID=` + uuid + ` ro single
		initrd	/boot/initrd.img-6.1
	}
}
menuentry 'gone' {
	linux /boot/vmlinuz-5.10 root=/dev/sda1
}
`

const blsEntry = `title Fedora Linux (6.9.1)
version 6.9.1
linux /vmlinuz-6.9.1
initrd /initramfs-6.9.1.img $tuned_initrd
options root=UUID=1 ro $kernelopts
options quiet
`

const extlinuxConfig = `default l0
label l0
	menu label Alpine
	linux /boot/vmlinuz-lts
	initrd /boot/initramfs-lts,/boot/firmware.img
	append root=/dev/vda3 modules=ext4
`

// tree makes a directory of files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run runs a tool of the host, or skips where it is not there.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s: make test installs it", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// makeExt4 makes a file system of a directory at an offset of a file.
func makeExt4(t *testing.T, disk, dir string, offset, size int64) {
	t.Helper()
	run(t, "mke2fs", "-q", "-t", "ext4", "-U", uuid, "-d", dir, "-E", fmt.Sprint("offset=", offset), disk, fmt.Sprintf("%dk", size>>10))
}

func entries(t *testing.T, path string) []*Entry {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Entries(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func sparse(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEntries(t *testing.T) {
	kernel, initrd := strings.Repeat("kernel", 100000), strings.Repeat("initrd", 300000)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []Entry
	}{
		{"grub", map[string]string{"boot/grub/grub.cfg": grubConfig, "boot/vmlinuz-6.1": kernel, "boot/initrd.img-6.1": initrd}, []Entry{
			{Title: "Debian GNU/Linux", Kernel: "/boot/vmlinuz-6.1", Initrds: []string{"/boot/initrd.img-6.1"}, Args: "root=UUID=" + uuid + " ro quiet"},
			{Title: "Debian GNU/Linux, recovery", Kernel: "/boot/vmlinuz-6.1", Initrds: []string{"/boot/initrd.img-6.1"}, Args: "root=UUID=" + uuid + " ro single"}}},
		{"bls", map[string]string{"loader/entries/a.conf": strings.ReplaceAll(blsEntry, "6.9.1", "6.10.0"), "loader/entries/b.conf": blsEntry,
			"vmlinuz-6.9.1": kernel, "vmlinuz-6.10.0": kernel, "initramfs-6.9.1.img": initrd, "initramfs-6.10.0.img": initrd}, []Entry{
			{Title: "Fedora Linux (6.10.0)", Kernel: "/vmlinuz-6.10.0", Initrds: []string{"/initramfs-6.10.0.img"}, Args: "root=UUID=1 ro quiet"},
			{Title: "Fedora Linux (6.9.1)", Kernel: "/vmlinuz-6.9.1", Initrds: []string{"/initramfs-6.9.1.img"}, Args: "root=UUID=1 ro quiet"}}},
		{"extlinux", map[string]string{"boot/extlinux/extlinux.conf": extlinuxConfig, "boot/vmlinuz-lts": kernel, "boot/initramfs-lts": initrd, "boot/firmware.img": "firmware"}, []Entry{
			{Title: "Alpine", Kernel: "/boot/vmlinuz-lts", Initrds: []string{"/boot/initramfs-lts", "/boot/firmware.img"}, Args: "root=/dev/vda3 modules=ext4"}}},
		{"bare", map[string]string{"boot/vmlinuz-6.9": kernel, "boot/vmlinuz-6.10": kernel, "boot/initrd.img-6.10": initrd}, []Entry{
			{Title: "Linux 6.10", Kernel: "boot/vmlinuz-6.10", Initrds: []string{"boot/initrd.img-6.10"}, Args: "root=UUID=" + uuid + " ro"},
			{Title: "Linux 6.9", Kernel: "boot/vmlinuz-6.9"}}}, // its arguments: TestWithoutInitrd
		{"grub that leads nowhere", map[string]string{"boot/grub/grub.cfg": "while true; do true; done", "boot/vmlinuz-6.9": kernel, "boot/initrd.img-6.9": initrd}, []Entry{
			{Title: "Linux 6.9", Kernel: "boot/vmlinuz-6.9", Initrds: []string{"boot/initrd.img-6.9"}, Args: "root=UUID=" + uuid + " ro",
				Unclear: []string{"boot/grub/grub.cfg: no entry for Linux was found in it"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, c.files)
			const size = 48 << 20
			whole := sparse(t, size)
			makeExt4(t, whole, dir, 0, size)
			gpt := sparse(t, size+4<<20)
			table := exec.Command("sfdisk", "-q", gpt)
			table.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=2048,size=2048\nstart=4096,size=%d,type=linux\n", size/512))
			if out, err := table.CombinedOutput(); err != nil {
				t.Fatalf("sfdisk: %v\n%s", err, out)
			}
			makeExt4(t, gpt, dir, 4096*512, size)
			for _, disk := range []string{whole, gpt} {
				got := entries(t, disk)
				if len(got) != len(c.want) {
					t.Fatalf("%s: %d entries, want %d: %+v", disk, len(got), len(c.want), got)
				}
				for i, e := range got {
					w := c.want[i]
					if e.Title != w.Title || e.Kernel != w.Kernel || w.Args != "" && e.Args != w.Args || !slices.Equal(e.Initrds, w.Initrds) || !slices.Equal(e.Unclear, w.Unclear) {
						t.Errorf("%s: entry %d: %+v, want %+v", disk, i, e, w)
					}
					k, rd, err := e.Load()
					if err != nil || string(k) != kernel || len(rd) != len(w.Initrds) || len(rd) > 0 && string(rd[0]) != initrd {
						t.Errorf("%s: entry %d does not load: %v", disk, i, err)
					}
				}
			}
		})
	}
}

// TestSeparateBoot has the kernels on a vfat partition of their own.
func TestSeparateBoot(t *testing.T) {
	const size = 64 << 20
	fat := sparse(t, size)
	run(t, "mkfs.vfat", "-F", "32", fat)
	dir := tree(t, map[string]string{"entry.conf": blsEntry, "vmlinuz-6.9.1": "kernel", "initramfs-6.9.1.img": "initrd"})
	run(t, "mmd", "-i", fat, "::/loader", "::/loader/entries")
	run(t, "mcopy", "-i", fat, filepath.Join(dir, "entry.conf"), "::/loader/entries/entry.conf")
	run(t, "mcopy", "-i", fat, filepath.Join(dir, "vmlinuz-6.9.1"), filepath.Join(dir, "initramfs-6.9.1.img"), "::/")
	e := entries(t, fat)
	if k, rd, err := e[0].Load(); err != nil || string(k) != "kernel" || string(rd[0]) != "initrd" {
		t.Errorf("%q %q %v", k, rd, err)
	}
}

func TestFind(t *testing.T) {
	all := []*Entry{{Title: "Linux 6.1"}, {Title: "Linux 6.1 (recovery)"}, {Title: "Other"}}
	for name, want := range map[string]int{"1": 0, "3": 2, "Linux 6.1": 0, "recovery": 1, "Oth": 2, "Linux": -1, "0": -1, "nope": -1} {
		e, err := Find(all, name)
		if want < 0 {
			if err == nil {
				t.Errorf("%q: found %v", name, e)
			}
			continue
		}
		if err != nil || e != all[want] {
			t.Errorf("%q: %v, %v", name, e, err)
		}
	}
}

func TestNothing(t *testing.T) {
	dir := tree(t, map[string]string{"etc/passwd": "x", "boot/grub/grub.cfg": "linux file:///etc/passwd\nmenuentry x {\nlinux http://localhost/x\n}\n"})
	disk := sparse(t, 16<<20)
	makeExt4(t, disk, dir, 0, 16<<20)
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Entries(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrNoEntry) {
		t.Errorf("%v", err)
	}
	if _, err := Entries(bytes.NewReader(make([]byte, 1<<20)), 1<<20); err == nil {
		t.Error("zeros boot")
	}
}

// TestExtlinux has configurations where Alpine has them, and where live disks do; the first
// includes itself.
func TestExtlinux(t *testing.T) {
	const alpine = "DEFAULT menu.c32\nLABEL lts\n LINUX vmlinuz-lts\nLABEL virt\n MENU LABEL Linux ^virt\n MENU DEFAULT\n LINUX vmlinuz-virt\n INITRD ucode,initramfs-virt\n APPEND modules=ext4\nINCLUDE extlinux.conf\n"
	f := &fileSystem{FS: mapFS{"boot/extlinux.conf": alpine, "isolinux/isolinux.cfg": "LABEL live\nKERNEL /live/vmlinuz\nAPPEND initrd=/live/initrd.img boot=live\nFROBNICATE\n"}}
	for i, want := range []Entry{
		{Title: "lts", ID: "lts", Kernel: "/boot/vmlinuz-lts"},
		{Title: "Linux virt", ID: "virt", Kernel: "/boot/vmlinuz-virt", Initrds: []string{"/boot/ucode", "/boot/initramfs-virt"}, Args: "modules=ext4", preferred: true},
		{Title: "live", ID: "live", Kernel: "/live/vmlinuz", Initrds: []string{"/live/initrd.img"}, Args: "boot=live", Unclear: []string{"frobnicate"}},
	} {
		e := extlinuxEntries(f)[i]
		if e.Title != want.Title || e.ID != want.ID || e.Kernel != want.Kernel || e.Args != want.Args || e.preferred != want.preferred ||
			!slices.Equal(e.Initrds, want.Initrds) || !slices.Equal(e.Unclear, want.Unclear) {
			t.Errorf("%+v, want %+v", e, want)
		}
	}
}

// FuzzDisk changes bytes of a small disk that boots.
func FuzzDisk(f *testing.F) {
	path := filepath.Join(f.TempDir(), "disk")
	dir := f.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "boot/grub"), 0o755),
		os.WriteFile(filepath.Join(dir, "boot/grub/grub.cfg"), []byte(grubConfig), 0o644),
		os.WriteFile(filepath.Join(dir, "boot/vmlinuz-6.1"), []byte("kernel"), 0o644),
		os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<20)); err != nil {
		f.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", dir, path).CombinedOutput(); err != nil {
		f.Skipf("mke2fs: %v\n%s", err, out)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(1024+4), []byte{1, 2, 3, 4})
	f.Add(uint32(4096), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		b := bytes.Clone(good)
		copy(b[at%uint32(len(b)):], change)
		all, err := Entries(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, e := range all {
			e.Load()
		}
	})
}

// FuzzConfig gives any text to the parsers of boot configurations.
func FuzzConfig(f *testing.F) {
	f.Add(grubConfig)
	f.Add(extlinuxConfig)
	f.Add(blsEntry)
	f.Fuzz(func(t *testing.T, text string) {
		grub := func(f *fileSystem) []*Entry { return grubEntries([]*fileSystem{f}) }
		fs := &fileSystem{FS: mapFS{"boot/grub/grub.cfg": text, "extlinux/extlinux.conf": text, "loader/entries/a.conf": text}}
		for _, find := range []func(*fileSystem) []*Entry{grub, blsEntries, extlinuxEntries} {
			for _, e := range find(fs) {
				if strings.Contains(e.Args, "\n") {
					t.Errorf("arguments %q", e.Args)
				}
			}
		}
	})
}
