package disk

import (
	"reflect"
	"strings"
	"testing"
)

// configEntry is what a configuration says of an entry.
type configEntry struct {
	title, kernel, initrds, args string
}

func configEntries(all []*Entry) (out []configEntry) {
	for _, e := range all {
		out = append(out, configEntry{e.Title, e.Kernel, strings.Join(e.Initrds, " "), e.Args})
	}
	return out
}

func TestGrub(t *testing.T) {
	menu := `
menuentry "One" --class x $menuentry_id_option 'one' {
	linux /one
}
submenu 'More' --id more {
	menuentry 'Two' --id=x {
		linux /two
	}
	menuentry 'Three' --id three {
		linux /three
	}
}
menuentry 'Four' {
	linux /four
}
`
	one, two, three, four := configEntry{"One", "/one", "", ""}, configEntry{"Two", "/two", "", ""}, configEntry{"Three", "/three", "", ""}, configEntry{"Four", "/four", "", ""}
	for _, c := range []struct {
		name, text string
		want       []configEntry
	}{
		{"no default", menu, []configEntry{one, two, three, four}},
		{"the default's number", "set default=2" + menu, []configEntry{four, one, two, three}},
		{"its number in a submenu", `set default="1>1"` + menu, []configEntry{three, one, two, four}},
		{"its title", "set default='Two'" + menu, []configEntry{two, one, three, four}},
		{"its ID", "set default=three" + menu, []configEntry{three, one, two, four}},
		{"a default that is not there", "set default=9" + menu, []configEntry{one, two, three, four}},
		{"a variable", "set default=Four\nset default=\"${next_entry}\"" + menu, []configEntry{four, one, two, three}},
		{"all kinds of commands", `# a comment
function load { insmod x; }
if [ x ]; then
  menuentry 'It''s "it"' { # here
    load; search --fs-uuid --set=root 1-2
    linuxefi (hd0,gpt2)/boot/../vmlinuz-1 root=UUID=1 a="b c" d=e\x2df \\g $extra ${more}
    initrdefi /ucode.img ($root)/initrd-1 $none
  }
fi
linux /outside
`, []configEntry{{`Its "it"`, "/vmlinuz-1", "/ucode.img /initrd-1", `root=UUID=1 "a=b c" d=e\x2df \\g`}}},
		{"the same twice", "menuentry a {\nlinux /x 1\n}\nmenuentry a {\nlinux /x 2\n}\n", []configEntry{{"a", "/x", "", "1"}}},
		{"another kernel for the same entry", "menuentry a {\nlinux /x\ninitrd /i\nlinux /y\n}\n", []configEntry{{"a", "/y", "", ""}}},
		{"a string of two lines", "menuentry 'a' --id 'x\ny' {\nlinux /x\n}\n", []configEntry{{"a", "/x", "", ""}}},
		{"files of other files", "source /more.cfg\nconfigfile boot/grub/grub.cfg\nsource /nowhere\n", []configEntry{{"more", "/m", "", "x"}}},
		{"braces that close nothing", "}\n}\nmenuentry\nsubmenu {\n}\nlinux\nmenuentry a {\nlinux /x\n", []configEntry{{"a", "/x", "", ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fileSystem{FS: mapFS{"boot/grub/grub.cfg": c.text, "more.cfg": "menuentry more {\nlinux /m x\n}\n"}}
			if got := configEntries(grubEntries(f)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestExtlinux(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []configEntry
	}{
		{"a default", "DEFAULT b\nLABEL a\nKERNEL /a\nLABEL b\nLINUX /b\nLABEL c\nLINUX c\n",
			[]configEntry{{"b", "/b", "", ""}, {"a", "/a", "", ""}, {"c", "/boot/extlinux/c", "", ""}}},
		{"a default in the menu", "label a\nlinux /a\nlabel b\nmenu label The B\nmenu default\nlinux ../b\n",
			[]configEntry{{"The B", "/boot/b", "", ""}, {"a", "/a", "", ""}}},
		{"arguments", "append all of them initrd=/i\nlabel a\nlinux /a\nlabel b\nlinux /b\nappend own\nlabel c\nlinux /c\nappend -\n",
			[]configEntry{{"a", "/a", "/i", "all of them initrd=/i"}, {"b", "/b", "", "own"}, {"c", "/c", "", ""}}},
		{"several initial RAM disks", "label a\nlinux /a\ninitrd /i,j\nappend initrd=/k x\nlabel none\nappend x\n",
			[]configEntry{{"a", "/a", "/i /boot/extlinux/j", "initrd=/k x"}}},
		{"another file", "linux /x\nmenu label x\ninclude more.conf\ninclude nowhere\n",
			[]configEntry{{"m", "/m", "", ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := mapFS{"boot/extlinux/extlinux.conf": c.text}
			if strings.Contains(c.text, "more.conf") {
				files["boot/extlinux/more.conf"] = "label m\nlinux /m\n"
			}
			f := &fileSystem{FS: files}
			if got := configEntries(extlinuxEntries(f)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	loop := &fileSystem{FS: mapFS{"extlinux.conf": "include extlinux.conf\ninclude extlinux.conf\nlabel a\nlinux /a\n"}}
	if got := extlinuxEntries(loop); len(got) > maxIncludes {
		t.Errorf("%d entries", len(got))
	}
}
