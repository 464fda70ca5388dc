package grub

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// testDisk has file systems by their devices; UUIDs and labels are U-DEVICE and L-DEVICE.
type testDisk map[string]fstest.MapFS

// Device implements Disk.
func (d testDisk) Device(name string) fs.FS {
	if f, ok := d[name]; ok {
		return f
	}
	return nil
}

// Devices implements Disk.
func (d testDisk) Devices() []string { return slices.Sorted(maps.Keys(d)) }

// Search implements Disk.
func (d testDisk) Search(kind SearchKind, value string) string {
	for name := range d {
		if value == map[SearchKind]string{ByUUID: "U-", ByLabel: "L-"}[kind]+name {
			return name
		}
	}
	return ""
}

// Probe implements Disk.
func (d testDisk) Probe(device string) Identity {
	if d.Device(device) == nil {
		return Identity{}
	}
	return Identity{Kind: "ext2", UUID: "U-" + device, Label: "L-" + device, Partition: "P-" + device}
}

// Snippets implements Disk: a snippet's lines are its title, kernel, initrds and options.
func (d testDisk) Snippets(device, dir string) (out []Snippet) {
	files, _ := fs.Glob(d[device], path.Join(inside(dir), "*.conf"))
	slices.Reverse(files)
	for _, name := range files {
		l := strings.Split(string(d[device][name].Data), "\n")
		out = append(out, Snippet{Title: l[0], ID: path.Base(name), Kernel: l[1], Initrds: l[2], Options: l[3]})
	}
	return out
}

// device makes a file system: files with contents, and empty ones.
func device(texts map[string]string, empty ...string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range texts {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	for _, name := range empty {
		out[name] = &fstest.MapFile{Data: []byte("x")}
	}
	return out
}

// show is an entry as the tests compare it.
func show(m *Menu) string {
	var b strings.Builder
	for _, e := range m.Entries {
		mark := ""
		if e == m.Default {
			mark = "*"
		}
		fmt.Fprintf(&b, "%s%s | %s | (%s)%s %s", mark, strings.TrimPrefix(e.Menu+">"+e.Title, ">"), e.ID, e.Kernel.Device, e.Kernel.Path, e.Args)
		for _, i := range e.Initrds {
			fmt.Fprintf(&b, " + (%s)%s", i.Device, i.Path)
		}
		for _, n := range e.NotUnderstood {
			fmt.Fprintf(&b, " ? %s", n)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestScripts has what single commands and forms of the language do.
func TestScripts(t *testing.T) {
	kernel := []string{"k", "i", "j", "boot/k", "boot/i"}
	for _, c := range []struct{ name, script, want string }{
		{"two initrds", `menuentry "Arch" {
 linux /k root=UUID=1 rw
 initrd /i /j
}`, "*Arch | Arch | (hd0,gpt2)/k root=UUID=1 rw + (hd0,gpt2)/i + (hd0,gpt2)/j\n"},
		{"device prefixes", `menuentry a { linux ($root)/k; initrd (hd0,gpt1)/i }`, "*a | a | (hd0,gpt2)/k  + (hd0,gpt1)/i\n"},
		{"prefix", `menuentry a { linux $prefix/../../k; initrd ${prefix}/../i }`, "*a | a | (hd0,gpt2)/k  + (hd0,gpt2)/boot/i\n"},
		{"a device that is not there", `menuentry a { linux (hd1,gpt2)/k }`, "*a | a | ()/k  ? linux: (hd1,gpt2)/k: there is no such device\n"},
		{"a file that is not there", `menuentry a { linux /k; initrd /gone }`, "*a | a | (hd0,gpt2)/k  + (hd0,gpt2)/gone ? initrd: there is no /gone on (hd0,gpt2)\n"},
		{"continued lines, comments", "menuentry a \\\n --class x { # what\n linux /k a\\\n=1 \\\n  b#c # d\n}", "*a | a | (hd0,gpt2)/k a=1 b#c\n"},
		{"quotes", `menuentry 'it'\''s "a"' { linux /k "a b" 'c$d' e\ f "\$g\"" h"i"'j' "" }`, `*it's "a" | it's "a" | (hd0,gpt2)/k "a b" c$d "e f" $g\" hij ` + "\n"},
		{"variables", `x=1; set y="2 3"; z='$x'; menuentry a { linux /k $x${y}4 "$y" $z "${x}b" }`, `*a | a | (hd0,gpt2)/k 12 34 "2 3" $x 1b` + "\n"},
		{"a variable that is not set", `menuentry a { linux /k root=$nowhere ro $vt_handoff }`, "*a | a | (hd0,gpt2)/k root= ro ? linux: the variable nowhere is not set\n"},
		{"set to nothing", `set x=; menuentry a { linux /k $x ro }`, "*a | a | (hd0,gpt2)/k ro\n"},
		{"unset", `set x=1; unset x; menuentry a { linux /k "x$x" }`, "*a | a | (hd0,gpt2)/k x ? linux: the variable x is not set\n"},
		{"if", `if [ 1 -eq 2 ]; then set x=a; elif test b = b
then set x=b; else set x=c; fi; menuentry a { if [ "$x" != b ] ; then linux /j; else linux /k $x; fi }`, "*a | a | (hd0,gpt2)/k b\n"},
		{"for, while, until", `for i in a "b c" $n; do x="$x<$i>"; done; set i=0; while [ "$w" != 111 ]; do w=${w}1; done
until false; do u=1; break; done
menuentry a { linux /k "$x" $w $u }`, `*a | a | (hd0,gpt2)/k "<a><b c>" 111 1` + "\n"},
		{"functions", `function f { if [ "$1" = x ]; then return; fi; y="$2-$#"; }
function load_video { insmod all_video }
f 1 2 3; f x 4; menuentry a { load_video; gfxmode keep; savedefault; linux /k $y }`, "*a | a | (hd0,gpt2)/k 2-3\n"},
		{"an unknown command", `frob 1; menuentry a { frob 2; linux /k }; menuentry b { linux /k }`, "*a | a | (hd0,gpt2)/k  ? unknown command frob\nb | b | (hd0,gpt2)/k \n"},
		{"an unknown condition", `if frob; then set default=1; fi; menuentry a { linux /k }`, "*a | a | (hd0,gpt2)/k  ? unknown command frob\n"},
		{"no kernel", `menuentry win { chainloader +1 }; menuentry a { linux /k }; menuentry fw { fwsetup }`, "a | a | (hd0,gpt2)/k \n"},
		{"default by number", `set default=1; menuentry a { linux /k }; menuentry b { linux /k }`, "a | a | (hd0,gpt2)/k \n*b | b | (hd0,gpt2)/k \n"},
		{"numbers count all", `default=1; menuentry w { chainloader +1 }; menuentry b { linux /k }`, "*b | b | (hd0,gpt2)/k \n"},
		{"default by title", `set default="b c"; menuentry a { linux /k }; menuentry "b c" { linux /k }`, "a | a | (hd0,gpt2)/k \n*b c | b c | (hd0,gpt2)/k \n"},
		{"default by id", `set default=y; menuentry a --id x { linux /k }; menuentry b --id=y { linux /k }`, "a | x | (hd0,gpt2)/k \n*b | y | (hd0,gpt2)/k \n"},
		{"a default that is not there", `set default=z; menuentry a { linux /k }; menuentry b { linux /k }`, "*a | a | (hd0,gpt2)/k \nb | b | (hd0,gpt2)/k \n"},
		{"submenu by ids", `set default='o>q'; menuentry a { linux /k }; submenu Old --id o { menuentry p { linux /k }; menuentry r --id q { linux /k } }`,
			"a | a | (hd0,gpt2)/k \nOld>p | o>p | (hd0,gpt2)/k \n*Old>r | o>q | (hd0,gpt2)/k \n"},
		{"submenu by numbers", `set default='1>1'; menuentry a { linux /k }; submenu Old { menuentry p { linux /k }; menuentry q { linux /k } }`,
			"a | a | (hd0,gpt2)/k \nOld>p | Old>p | (hd0,gpt2)/k \n*Old>q | Old>q | (hd0,gpt2)/k \n"},
		{"submenu alone", `set default=1; menuentry a { linux /k }; submenu Old { menuentry p { linux /k } }`, "a | a | (hd0,gpt2)/k \n*Old>p | Old>p | (hd0,gpt2)/k \n"},
		{"exported", `x=1; export y=2; submenu s { menuentry a { linux /k "$x$y" } }`, "*s>a | s>a | (hd0,gpt2)/k 2 ? linux: the variable x is not set\n"},
		{"search", `for a in "--no-floppy --fs-uuid --set=b U-hd0,gpt1" "--set b --label L-hd0,gpt1" "-l L-hd0,gpt1 --set b --hint-bios=hd0" "--file --set=b --hint hd7 /one"; do
set b=; search $a; if [ "$b" = hd0,gpt1 ]; then n=x$n; fi; done
search --fs-uuid --set=root gone; menuentry a { linux /k $n; search --label L-hd0,gpt1; initrd /i }`, "*a | a | (hd0,gpt2)/k xxxx + (hd0,gpt1)/i\n"},
		{"tests", `if [ -f /k -a -d /boot -a -s /k -a -e (hd0,gpt1)/one -a ! -f /boot -a -z "" -a -n x ]; then n=1; fi
if [ ( a = b -o 2 -lt 10 ) -a 3 -ge 3 -a a \< b -a x != y ]; then n=${n}2; fi
if [ -f /gone -o ! x = x ]; then n=${n}3; fi; if [ ]; then n=4; fi
menuentry a { linux /k $n }`, "*a | a | (hd0,gpt2)/k 12\n"},
		{"regexp", `if regexp --set=1:v '^([0-9]+)\.' 6.1; then menuentry a { linux /k $v }; fi`, "*a | a | (hd0,gpt2)/k 6\n"},
		{"wildcards", `for i in /boot/k* /[kj] '/boot/*' "/b"* /*/i; do x="$x<$i>"; done; p=/boot; menuentry a { linux $p/k* $x; initrd (hd0,gpt?)/one }`,
			"*a | a | (hd0,gpt2)/boot/k </boot/k></[kj]></boot/*></boot></boot/i> + (hd0,gpt1)/one\n"},
		{"wildcards of devices", `for i in (*)/one (hd0,*) * (*)/gone /gone/* x*; do x="$x<$i>"; done; menuentry a { linux /k "$x" }`,
			"*a | a | (hd0,gpt2)/k <(hd0,gpt1)/one><(hd0,gpt1)><(hd0,gpt2)><*><(*)/gone></gone/*><x*>\n"},
		{"menus of files", `for k in /boot/grub/?rub.cfg /boot/[x] /boot/k /*; do if [ -f "$k" ]; then menuentry "$k" "$k" { linux "$2" }; fi; done`,
			"*/boot/grub/grub.cfg | /boot/grub/grub.cfg | (hd0,gpt2)/boot/grub/grub.cfg \n/boot/k | /boot/k | (hd0,gpt2)/boot/k \n/i | /i | (hd0,gpt2)/i \n/j | /j | (hd0,gpt2)/j \n/k | /k | (hd0,gpt2)/k \n"},
		{"wildcards that are arguments", `menuentry a { linux /k dyndbg=*file? "/*" \*; initrd /\k }`, "*a | a | (hd0,gpt2)/k dyndbg=*file? /* * + (hd0,gpt2)/k\n"},
		{"the last kernel counts", `menuentry a { linux /j; initrd /j; linux /k b; initrd /i }`, "*a | a | (hd0,gpt2)/k b + (hd0,gpt2)/i\n"},
		{"no menu", `linux /k a; initrd /i; boot`, "*k | k | (hd0,gpt2)/k a + (hd0,gpt2)/i\n"},
		{"a fault", "menuentry a { linux /k }\nif [ x\nmenuentry b { linux /k }", "*a | a | (hd0,gpt2)/k  ? /boot/grub/grub.cfg: line 3: no then\n"},
		{"an end that is missing", "menuentry a { linux /k }\nmenuentry 'b { linux /k }", "*a | a | (hd0,gpt2)/k  ? /boot/grub/grub.cfg: line 2: ' without its end\n"},
		{"never ends", "menuentry a { linux /k }\nwhile true; do x=1; done", "*a | a | (hd0,gpt2)/k  ? the configuration takes too many steps\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := testDisk{"hd0,gpt1": device(nil, "one", "i"), "hd0,gpt2": device(map[string]string{"boot/grub/grub.cfg": c.script}, kernel...)}
			m, err := Run(d, "hd0,gpt2", "/boot/grub/grub.cfg", false)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(m); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}
