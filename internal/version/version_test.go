package version

import (
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	for _, tt := range []struct{ tag, module, want string }{
		{"v0.2.0", "(devel)", "v0.2.0 go1.26.8"},
		{"v0.2.0-3-gabc1234-dirty", "v0.2.1-0.20261125094118-abc1234abc12+dirty", "v0.2.0-3-gabc1234-dirty go1.26.8"},
		{"untagged-abc1234", "", "untagged-abc1234 go1.26.8"},
		{"", "v0.2.0", "v0.2.0 go1.26.8"},
		{"", "v0.2.1-0.20261125094118-abc1234abc12", "v0.2.1-0.20261125094118-abc1234abc12 go1.26.8"},
		{"", "v0.0.0-20261125094118-abc1234abc12+dirty", "untagged-abc1234abc12+dirty go1.26.8"},
		{"", "(devel)", "untagged go1.26.8"},
		{"", "", "untagged go1.26.8"},
	} {
		info := &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: tt.module}}
		if got := describe(tt.tag, info); got != tt.want {
			t.Errorf("describe(%q, %q) = %q, want %q", tt.tag, tt.module, got, tt.want)
		}
	}
	if got := describe("", &debug.BuildInfo{}); got != untagged {
		t.Errorf("without any build information: %q, want %q", got, untagged)
	}
}
