package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"
)

// keys are what a mapping may have, with what is in it: nil is anything. The key anyName stands for
// those that the user chooses. A list is as each of its elements.
type keys map[string]keys

const anyName = "*"

// supported is what of a file has an effect.
var supported = keys{
	"name": nil, "version": nil, "include": nil,
	"services": {anyName: {
		"image": nil, "command": nil, "entrypoint": nil, "environment": nil, "env_file": nil, "user": nil, "working_dir": nil, "container_name": nil, "hostname": nil, "labels": nil, "restart": nil, "stop_signal": nil, "stop_grace_period": nil, "extra_hosts": nil, "expose": nil, "init": nil, "read_only": nil, "tmpfs": nil, "pull_policy": nil,
		"mem_limit": nil, "cpus": nil, "profiles": nil, "extends": nil, "platform": nil, "network_mode": nil,
		"ports":       {"target": nil, "published": nil, "protocol": nil, "host_ip": nil, "name": nil, "app_protocol": nil},
		"volumes":     {"type": nil, "source": nil, "target": nil, "read_only": nil, "bind": {"create_host_path": nil}, "tmpfs": {"size": nil}, "volume": {"nocopy": nil}},
		"networks":    {anyName: {"aliases": nil, "ipv4_address": nil, "priority": nil}},
		"depends_on":  {anyName: {"condition": nil, "required": nil}},
		"healthcheck": {"test": nil, "interval": nil, "timeout": nil, "retries": nil, "start_period": nil, "disable": nil},
	}},
	"networks": {anyName: {"name": nil, "external": nil, "internal": nil, "labels": nil, "ipam": {"config": {"subnet": nil}}}},
	"volumes":  {anyName: {"name": nil, "external": nil, "labels": nil}},
}

// maxDepth bounds how deep a file is looked at: an alias may be in what it stands for.
const maxDepth = 32

// unsupported returns a line for each key of a file that has no effect.
func unsupported(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(b, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var out []string
	said := map[string]bool{}
	for _, n := range document.Content {
		look(n, supported, "", 0, func(line int, key string) {
			text := fmt.Sprintf("%s:%d: %s has no effect here", filepath.Base(file), line, key)
			if !said[text] { // by an alias
				out = append(out, text)
			}
			said[text] = true
		})
	}
	return out, nil
}

// look finds the keys of a node that are not among those known.
func look(n *yaml.Node, known keys, path string, depth int, found func(line int, key string)) {
	if known == nil || depth > maxDepth {
		return
	}
	switch n.Kind {
	case yaml.AliasNode:
		look(n.Alias, known, path, depth+1, found)
	case yaml.SequenceNode:
		for _, e := range n.Content {
			if _, names := known[anyName]; !names { // a list of names is none of mappings
				look(e, known, path, depth+1, found)
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Value == "<<" {
				look(value, known, path, depth+1, found)
				continue
			}
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			below, ok := known[key.Value]
			if !ok {
				below, ok = known[anyName]
			}
			switch {
			case strings.HasPrefix(key.Value, "x-"): // an extension, for other programs
			case !ok:
				found(key.Line, at)
			default:
				look(value, below, at, depth+1, found)
			}
		}
	}
}
