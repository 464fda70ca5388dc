package disk

import (
	"slices"
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
		"loader/entries/z.conf":          "title No key\nlinux /k\n",
	}
	for _, c := range []struct {
		config string
		want   []string
	}{
		{"", []string{"Ten", "Nine", "No key", "Bad"}},
		{"timeout 3\ndefault @saved\n", []string{"Ten", "Nine", "No key", "Bad"}},
		{"default\tm-*.9.conf\n", []string{"Nine", "Ten", "No key", "Bad"}},
		{"default z\n", []string{"No key", "Ten", "Nine", "Bad"}},
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

// TestWithoutInitrd: the root of a kernel without an initial RAM disk is named as the kernel
// by itself finds it.
func TestWithoutInitrd(t *testing.T) {
	root := &fileSystem{FS: mapFS{"etc/fstab": ""}, kind: "ext4", uuid: uuid}
	boot := &fileSystem{FS: mapFS{"vmlinuz-1": "k", "vmlinuz-2": "k", "initramfs-2": "i"}, kind: "ext4", uuid: "other"}
	for want, p := range map[string]part{"/dev/vda": {}, "/dev/vda5": {number: 5}, "PARTUUID=1-2": {number: 2, uuid: "1-2"}} {
		root.part = p
		all := []*fileSystem{boot, root}
		if got := withoutInitrd("ro root=UUID="+uuid+" quiet", all); got != "ro root="+want+" quiet" {
			t.Errorf("%q", got)
		}
		e := bareKernels(all)
		if len(e) != 2 || e[0].Args != "root=UUID="+uuid+" ro" || e[1].Args != "root="+want+" ro" {
			t.Errorf("%+v", e)
		}
	}
}
