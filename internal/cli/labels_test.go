package cli

import (
	"maps"
	"testing"
)

// TestLabels: labels are read and found as docker does.
func TestLabels(t *testing.T) {
	labels, err := readLabels([]string{"a=b", "a.b/c=d=e", "lone"})
	if want := map[string]string{"a": "b", "a.b/c": "d=e", "lone": ""}; err != nil || !maps.Equal(labels, want) {
		t.Errorf("%v, %v", labels, err)
	}
	if _, err := readLabels([]string{"=x"}); err == nil {
		t.Error("a label without a key")
	}
	for _, c := range []struct {
		filter []string
		want   bool
	}{
		{nil, true}, {[]string{"label=a"}, true}, {[]string{"label=a=b"}, true}, {[]string{"label=a=c"}, false}, {[]string{"label=a", "label=none"}, false},
		{[]string{"label=a.b/c=d=e", "label=lone"}, true}, {[]string{"label=lone="}, true},
	} {
		f, err := readLabelFilter(c.filter)
		if err != nil || f.lets(labels) != c.want {
			t.Errorf("%q: %v, %v", c.filter, !c.want, err)
		}
	}
	for _, bad := range []string{"", "a=b", "label", "label=", "label==x"} {
		if _, err := readLabelFilter([]string{bad}); err == nil {
			t.Errorf("%q is a filter", bad)
		}
	}
}
