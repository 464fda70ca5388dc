package grub

import (
	"slices"
	"strings"
	"testing"
)

// TestBounds: what a command costs counts, and not how long it is to write. Each of these
// took a minute or gigabytes within the steps that a script has.
func TestBounds(t *testing.T) {
	loop := func(times int, body string) string {
		return "for i in " + strings.Repeat("x ", times) + "; do " + body + "; done\n"
	}
	for _, c := range []struct{ name, script, note string }{
		{"a pattern that repeats what repeats", `if regexp '(((.{10}){10}){10})' x; then x=1; fi`, "regexp: (((.{10}){10}){10})"},
		{"a long pattern", "if regexp '" + strings.Repeat("x", maxPattern+1) + "' x; then x=1; fi", "regexp: " + strings.Repeat("x", maxNote-len("regexp: "))},
		{"patterns with long texts", "x=" + strings.Repeat("a", maxPattern) + "\n" + loop(200, "regexp '(.{900})*b' $x"), errStopped.Error()},
		{"patterns with groups", "x=" + strings.Repeat("a", maxPattern) + "\n" + loop(200, "regexp '("+strings.Repeat("(a?)", 100)+")' $x"), errStopped.Error()},
		{"functions without end", "b='" + strings.Repeat("a;", 30000) + "'\n" + loop(200, `eval "function f$i { $b }"; i=x$i`), errStopped.Error()},
		{"wildcards", "x=" + strings.Repeat("/*", 10000) + "\n" + loop(1000, "y=/*$x*$x"), errStopped.Error()},
		{"wildcards that match often", loop(10000, "for j in "+strings.Repeat("/boot/*"+strings.Repeat("*r", 100)+"* ", 100)+"; do y=1; done"), errStopped.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := testDisk{"hd0": device(map[string]string{"boot/grub/grub.cfg": c.script + "\nmenuentry a { linux /k }"}, "k")}
			m, err := Run(d, "hd0", "/boot/grub/grub.cfg", false)
			if err != nil {
				t.Fatal(err)
			}
			var notes []string
			for _, e := range m.Entries {
				notes = append(notes, e.NotUnderstood...)
			}
			if m.Default == nil { // the script has ended before the menu
				notes = append(notes, errStopped.Error())
			}
			if !slices.Contains(notes, c.note) {
				t.Errorf("notes %q", notes)
			}
		})
	}
}
