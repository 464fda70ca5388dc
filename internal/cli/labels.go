package cli

import "strings"

// readLabels reads KEY=VALUE; a lone key has an empty value.
func readLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, l := range list {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return nil, usage("--label %q: KEY=VALUE", l)
		}
		out[key] = value
	}
	return out, nil
}

// labelFilter are labels that are wanted: KEY, or KEY=VALUE.
type labelFilter []string

// readLabelFilter reads what --filter says of labels.
func readLabelFilter(list []string) (f labelFilter, err error) {
	for _, text := range list {
		want, ok := strings.CutPrefix(text, "label=")
		if !ok || want == "" || want[0] == '=' {
			return nil, usage("--filter %s: label=KEY or label=KEY=VALUE", text)
		}
		f = append(f, want)
	}
	return f, nil
}

// lets reports whether labels have all that is wanted.
func (f labelFilter) lets(labels map[string]string) bool {
	for _, want := range f {
		key, value, given := strings.Cut(want, "=")
		if has, ok := labels[key]; !ok || given && has != value {
			return false
		}
	}
	return true
}
