package cli

import (
	"strings"
	"testing"
	"time"
)

// TestProgressLine holds the bar to its width, and the time that is left to what has passed.
func TestProgressLine(t *testing.T) {
	p := newProgress("saving")
	for _, c := range []struct {
		done, total int64
		full        int
		want        string
	}{
		{0, 8, 0, "  0 % |"}, {2, 8, 10, " 25 % |"}, {8, 8, barWidth, "100 % |"}, {9, 8, barWidth, "100 % |"}, {1 << 60, 1 << 61, 20, " 50 % |"},
	} {
		line := p.line(c.done, c.total, time.Minute)
		if !strings.HasPrefix(line, "saving "+c.want) || strings.Count(line, "█") != c.full || len([]rune(line[:strings.LastIndex(line, "|")])) != len("saving  25 % |")+barWidth {
			t.Errorf("%d of %d: %q", c.done, c.total, line)
		}
	}
	if line := p.line(2, 8, time.Minute); !strings.HasSuffix(line, " 3m0s") {
		t.Errorf("a quarter in a minute: %q", line)
	}
}
