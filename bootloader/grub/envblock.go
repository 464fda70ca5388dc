package grub

import (
	"slices"
	"strings"
)

// maxEnv bounds an environment block, which grub-editenv makes of 1024 bytes.
const maxEnv = 64 << 10

// envSignature is the first line of an environment block.
const envSignature = "# GRUB Environment Block\n"

// parseEnv reads an environment block: lines NAME=VALUE, where a backslash keeps the byte
// behind it, and filling of #.
func parseEnv(s string) (names, values []string) {
	s, ok := strings.CutPrefix(s, envSignature)
	for ok && s != "" {
		var line strings.Builder
		i := 0
		for ; i < len(s) && s[i] != '\n'; i++ {
			if s[i] == '\\' && i+1 < len(s) {
				i++
			}
			line.WriteByte(s[i])
		}
		s = s[min(i+1, len(s)):]
		if name, value, ok := strings.Cut(line.String(), "="); ok && !strings.HasPrefix(name, "#") {
			names, values = append(names, name), append(values, value)
		}
	}
	return names, values
}

// cmdLoadEnv sets variables of an environment block: load_env [-f FILE] [NAME...].
func (m *machine) cmdLoadEnv(c *call) (bool, error) {
	file, only := m.vars.get("prefix")+"/grubenv", []string(nil)
	for i := 0; i < len(c.args); i++ {
		a := c.args[i]
		if v, ok := strings.CutPrefix(a, "--file="); ok {
			file = v
		} else if (a == "-f" || a == "--file") && i+1 < len(c.args) {
			i++
			file = c.args[i]
		} else if !strings.HasPrefix(a, "-") {
			only = append(only, a)
		}
	}
	b, _, err := m.read(file, maxEnv)
	if err != nil {
		return false, m.fileError(err)
	}
	names, values := parseEnv(string(b))
	for i, name := range names {
		if len(only) == 0 || slices.Contains(only, name) {
			m.assign(name, values[i])
		}
	}
	return true, nil
}
