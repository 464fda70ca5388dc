package bootloader

import "strings"

// Cmdline joins the default arguments and the user's. A default is dropped
// where the user gives the same parameter, except for console=, which the
// kernel takes several of: there any of the user's replaces all defaults.
func Cmdline(defaults []string, user string) string {
	given := map[string]bool{}
	for _, a := range Fields(user) {
		if a == "--" {
			break // what follows is init's
		}
		given[param(a)] = true
	}
	var out []string
	for _, d := range defaults {
		if !given[param(d)] {
			out = append(out, d)
		}
	}
	if user = strings.TrimSpace(user); user != "" {
		out = append(out, user)
	}
	return strings.Join(out, " ")
}

// param is an argument's name as the kernel compares it: dashes are
// underscores.
func param(arg string) string {
	name, _, _ := strings.Cut(arg, "=")
	return strings.ReplaceAll(name, "-", "_")
}

// Fields splits a kernel command line at blanks outside double quotes.
func Fields(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n')
	})
}
