package tail

import (
	"slices"
	"strings"
	"testing"
)

func TestBuffer(t *testing.T) {
	var b Buffer
	want := ""
	for i := range 300 {
		p := strings.Repeat(string(rune('a'+i%26)), 1000)
		want += p
		b.Write([]byte(p))
	}
	if got := b.String(); len(got) < Size || len(got) > 2*Size || !strings.HasSuffix(want, got) {
		t.Errorf("%d bytes are kept, or others", len(got))
	}
	b.Write([]byte(strings.Repeat("x", 3*Size) + "end"))
	if got := b.String(); len(got) != Size || !strings.HasSuffix(got, "xend") {
		t.Errorf("%d bytes of one long text are kept", len(got))
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want []string
	}{
		{"", 3, []string{""}}, {"a\r\nb\r\n", 1, []string{"b"}}, {"a\nb\n\n\n", 5, []string{"a", "b"}}, {"a\n\nb", 2, []string{"", "b"}}, {"a\nb", 0, []string{}},
	} {
		if got := Lines(c.text, c.n); !slices.Equal(got, c.want) {
			t.Errorf("the last %d of %q: %q, want %q", c.n, c.text, got, c.want)
		}
	}
}
