package visible

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"unicode"
)

var texts = map[string]struct{ text, line string }{
	"":                        {"", ""},
	"plain, ä, 日本":            {"plain, ä, 日本", "plain, ä, 日本"},
	"two\nlines\t.":           {"two\nlines\t.", "two^Jlines^I."},
	"a\r\nb\rc":               {"a\nb^Mc", "a^M^Jb^Mc"},
	"\x1b]0;title\x07\x1b[2J": {"^[]0;title^G^[[2J", "^[]0;title^G^[[2J"},
	"\x00\x08\x7f":            {"^@^H^?", "^@^H^?"},
	"\x9b2J \u009b2J":         {`\x9b2J \x9b2J`, `\x9b2J \x9b2J`},
	"a\u202eb\u2066c\u2028":   {`a\u202eb\u2066c\u2028`, `a\u202eb\u2066c\u2028`},
	"cut \xe2\x82":            {`cut \xe2\x82`, `cut \xe2\x82`},
	"\ufffd":                  {"\ufffd", "\ufffd"},
}

func TestVisible(t *testing.T) {
	for in, want := range texts {
		if got := Text(in); got != want.text {
			t.Errorf("Text(%q) = %q, want %q", in, got, want.text)
		}
		if got := Line(in); got != want.line {
			t.Errorf("Line(%q) = %q, want %q", in, got, want.line)
		}
	}
}

// TestJSON: what is JSON stays what it is, and does nothing to a terminal.
func TestJSON(t *testing.T) {
	for in := range texts {
		whole, err := json.Marshal(map[string]string{in: in})
		if err != nil {
			t.Fatal(err)
		}
		got := JSON(whole)
		if !plain(string(got), "\ufffd") {
			t.Errorf("%q", got)
		}
		var was, is map[string]string
		if err := errors.Join(json.Unmarshal(whole, &was), json.Unmarshal(got, &is)); err != nil || !maps.Equal(was, is) {
			t.Errorf("%q is %q, %v", whole, got, err)
		}
	}
	if got := string(JSON([]byte("\"\U000e0001\x7f\""))); got != `"\udb40\udc01\u007f"` {
		t.Errorf("%s", got)
	}
}

// check holds what a Writer makes of a text, in two pieces, against Text.
func check(t *testing.T, in string, cut int) {
	t.Helper()
	var b strings.Builder
	w := NewWriter(&b)
	for _, part := range []string{in[:cut], in[cut:]} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := w.Flush(); err != nil || b.String() != Text(in) {
		t.Errorf("%q cut at %d: %q, %v; want %q", in, cut, b.String(), err, Text(in))
	}
}

func TestWriter(t *testing.T) {
	for in := range texts {
		for cut := range len(in) + 1 {
			check(t, in, cut)
		}
	}
}

func FuzzVisible(f *testing.F) {
	for in := range texts {
		f.Add(in, uint8(1))
	}
	f.Fuzz(func(t *testing.T, in string, cut uint8) {
		check(t, in, min(int(cut), len(in)))
		for _, r := range Text(in) {
			if !unicode.IsGraphic(r) && r != '\n' && r != '\t' {
				t.Errorf("%q: %q is left", in, r)
			}
		}
	})
}
