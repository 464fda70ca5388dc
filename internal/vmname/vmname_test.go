package vmname

import (
	"strings"
	"testing"
)

func TestValid(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "7": true, "Dev-2": true, "a--b": true, strings.Repeat("x", 63): true,
		"": false, "-a": false, "a-": false, "-": false, "a.b": false, "a_b": false, "ü": false, "a\n": false, strings.Repeat("x", 64): false,
	} {
		if got := Valid(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}
