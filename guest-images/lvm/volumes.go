package lvm

import (
	"fmt"
	"strings"
)

// target is one line of a device-mapper table: length sectors from start on.
type target struct {
	start, length uint64
	kind, params  string
}

// volume is a logical volume that can be made a device.
type volume struct {
	name  string // GROUP-VOLUME, as device-mapper has it
	table []target
}

// volumes finds the logical volumes of a group, whose physical volumes are devices by
// their UUID. Those that are not wholly there, or not of simple segments, are left out
// with a word.
func volumes(text string, device func(uuid string) (path string, ok bool)) (out []volume, left []error, err error) {
	root, err := parse(text)
	if err != nil {
		return nil, nil, err
	}
	for _, group := range root.sections {
		extent, err := group.number("extent_size")
		if err != nil {
			return nil, nil, err
		}
		for _, lv := range group.sub("logical_volumes").sections {
			v := volume{name: dmName(group.name) + "-" + dmName(lv.name)}
			for _, s := range lv.sections {
				if !strings.HasPrefix(s.name, "segment") {
					continue
				}
				var t target
				if t, err = segment(group, s, extent, device); err != nil {
					break
				}
				v.table = append(v.table, t)
			}
			switch {
			case err != nil:
				left = append(left, fmt.Errorf("%s: %w", v.name, err))
				err = nil
			case len(v.table) > 0:
				out = append(out, v)
			}
		}
	}
	return out, left, nil
}

// dmName is a name in one of device-mapper, in which a hyphen stands between two.
func dmName(s string) string { return strings.ReplaceAll(s, "-", "--") }

// segment makes a target of a segment.
func segment(group, s *section, extent uint64, device func(string) (string, bool)) (t target, err error) {
	start, err := s.number("start_extent")
	if err != nil {
		return t, err
	}
	count, err := s.number("extent_count")
	if err != nil {
		return t, err
	}
	if kind := s.text("type"); kind != "striped" {
		return t, fmt.Errorf("a segment of type %q", kind)
	}
	stripes := s.values["stripes"]
	if len(stripes) == 0 || len(stripes)%2 != 0 {
		return t, errSyntax
	}
	var places []string
	for i := 0; i < len(stripes); i += 2 {
		pv := group.sub("physical_volumes").sub(stripes[i])
		path, ok := device(strings.ReplaceAll(pv.text("id"), "-", ""))
		if !ok {
			return t, fmt.Errorf("the physical volume %s is not there", stripes[i])
		}
		first, err := pv.number("pe_start")
		if err != nil {
			return t, err
		}
		var at uint64
		if _, err := fmt.Sscanf(stripes[i+1], "%d", &at); err != nil {
			return t, errSyntax
		}
		places = append(places, fmt.Sprintf("%s %d", path, first+at*extent))
	}
	t = target{start: start * extent, length: count * extent, kind: "linear", params: strings.Join(places, " ")}
	if n := len(places); n > 1 {
		chunk, err := s.number("stripe_size")
		if err != nil {
			return t, err
		}
		t.kind, t.params = "striped", fmt.Sprintf("%d %d %s", n, chunk, t.params)
	}
	return t, nil
}
