package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Change is an instruction of a Dockerfile that says something of an image's configuration.
type Change struct {
	instruction string // in capitals
	rest        string
}

// errChange is the error for an instruction that there is not.
var errChange = errors.New("CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, and what it is to be")

// ParseChange reads an instruction, such as `CMD ["sleep", "1"]` or `ENV A=1 B="2 3"`.
func ParseChange(text string) (c Change, err error) {
	word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	c = Change{strings.ToUpper(word), strings.TrimSpace(rest)}
	if err := c.apply(&v1.Config{}); err != nil {
		return c, fmt.Errorf("%.200q: %w", text, err)
	}
	return c, nil
}

// applyChanges changes a configuration as docker commit does: an entry point takes the
// command away that the image had.
func applyChanges(c *v1.Config, changes []Change) error {
	is := func(name string) func(Change) bool {
		return func(i Change) bool { return i.instruction == name }
	}
	if slices.ContainsFunc(changes, is("ENTRYPOINT")) && !slices.ContainsFunc(changes, is("CMD")) {
		c.Cmd = nil
	}
	for _, i := range changes {
		if err := i.apply(c); err != nil {
			return err
		}
	}
	return nil
}

func (i Change) apply(c *v1.Config) (err error) {
	if i.rest == "" {
		return errChange
	}
	switch i.instruction {
	case "CMD":
		c.Cmd = commandLine(i.rest)
	case "ENTRYPOINT":
		c.Entrypoint = commandLine(i.rest)
	case "ENV":
		pairs, err := i.pairs()
		for _, p := range pairs {
			same := func(v string) bool { return strings.HasPrefix(v, p[0]+"=") }
			if n := slices.IndexFunc(c.Env, same); n >= 0 {
				c.Env[n] = p[0] + "=" + p[1]
			} else {
				c.Env = append(c.Env, p[0]+"="+p[1])
			}
		}
		return err
	case "LABEL":
		pairs, err := i.pairs()
		for _, p := range pairs {
			c.Labels = with(c.Labels, p[0], p[1])
		}
		return err
	case "EXPOSE":
		for port := range strings.FieldsSeq(i.rest) {
			if port, err = portOf(port); err != nil {
				return err
			}
			c.ExposedPorts = with(c.ExposedPorts, port, struct{}{})
		}
	case "VOLUME":
		list, ok := jsonList(i.rest)
		if !ok {
			list = strings.Fields(i.rest)
		}
		for _, v := range list {
			c.Volumes = with(c.Volumes, v, struct{}{})
		}
	case "USER":
		c.User = i.rest
	case "WORKDIR":
		c.WorkingDir = path.Join("/", c.WorkingDir, i.rest)
		if path.IsAbs(i.rest) {
			c.WorkingDir = path.Clean(i.rest)
		}
	case "STOPSIGNAL":
		c.StopSignal = i.rest
	default:
		return errChange
	}
	return nil
}

// with is a map with one more; the one that it was before stays as it was.
func with[V any](m map[string]V, key string, value V) map[string]V {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]V{}
	}
	m[key] = value
	return m
}

// jsonList reads a list of texts, if it is one.
func jsonList(text string) (list []string, ok bool) {
	return list, json.Unmarshal([]byte(text), &list) == nil && list != nil
}

// commandLine is a list, or a line for the shell.
func commandLine(text string) []string {
	if list, ok := jsonList(text); ok {
		return list
	}
	return []string{"/bin/sh", "-c", text}
}

// portOf is a port as a configuration has it: with its protocol.
func portOf(text string) (string, error) {
	number, protocol, ok := strings.Cut(text, "/")
	if !ok {
		protocol = "tcp"
	}
	protocol = strings.ToLower(protocol)
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
		return "", fmt.Errorf("%q is no port: such as 80 or 53/udp", text)
	}
	return fmt.Sprintf("%d/%s", n, protocol), nil
}

// pairs are NAME=VALUE, several with quotes where there are spaces, or NAME VALUE.
func (i Change) pairs() (out [][2]string, err error) {
	words, err := splitWords(i.rest)
	if err != nil {
		return nil, err
	}
	if name, value, ok := strings.Cut(i.rest, " "); ok && !strings.Contains(words[0], "=") {
		return [][2]string{{name, strings.TrimSpace(value)}}, nil
	}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is no NAME=VALUE", w)
		}
		out = append(out, [2]string{name, value})
	}
	return out, nil
}

// splitWords splits a text at its spaces, but for those in quotes or behind a backslash.
func splitWords(text string) (words []string, err error) {
	var word []byte
	begun, quote := false, byte(0)
	for n := 0; n < len(text); n++ {
		switch b := text[n]; {
		case b == '\\' && quote != '\'' && n+1 < len(text):
			n++
			word, begun = append(word, text[n]), true
		case quote != 0 && b == quote:
			quote = 0
		case quote == 0 && (b == '"' || b == '\''):
			quote, begun = b, true
		case quote == 0 && (b == ' ' || b == '\t'):
			if begun {
				words = append(words, string(word))
			}
			word, begun = nil, false
		default:
			word, begun = append(word, b), true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c that does not end", quote)
	}
	if begun {
		words = append(words, string(word))
	}
	return words, nil
}
