package md

import (
	"fmt"
	"slices"
)

// device is a block device on which a superblock may be.
type device struct {
	name   string // in /dev
	number string // MAJOR:MINOR
	disk   string // the name of the disk that it is a partition of; "" for a disk
	start  int64  // where on that disk it begins, in bytes
}

// member is a device with its superblock.
type member struct {
	device
	*superblock
}

// array is an array with the members that are up to date, the freshest first.
type array struct {
	members []member
	names   []string // of all devices that say they are members, those that are left out too
}

// assemble finds out which arrays there are. Devices that are no members of them after all are
// left out with a word.
func assemble(members []member) (arrays []array, left []error) {
	members = slices.DeleteFunc(members, func(m member) bool { return ofPartition(m, members) })
	// What looks like partitions of a member are those of its array.
	inner := func(m member) bool {
		return slices.ContainsFunc(members, func(o member) bool { return o.name == m.disk })
	}
	var order []string
	groups := map[string][]member{}
	for _, m := range members {
		if inner(m) {
			continue
		}
		key := m.uuid + m.version
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], m)
	}
	for _, key := range order {
		var a array
		for _, m := range groups[key] {
			a.names = append(a.names, m.name)
		}
		var stale []error
		a.members, stale = fresh(groups[key])
		arrays, left = append(arrays, a), append(left, stale...)
	}
	return arrays, left
}

// ofPartition reports whether a disk's superblock is that of one of its partitions, which ends
// where the disk does.
func ofPartition(m member, all []member) bool {
	return slices.ContainsFunc(all, func(p member) bool { return p.disk == m.name && p.start+p.at == m.at })
}

// fresh leaves out the members of an array that it has gone on without. A member may lack the one
// event that was just being written.
func fresh(all []member) (out []member, left []error) {
	slices.SortStableFunc(all, func(x, y member) int {
		switch {
		case x.events > y.events:
			return -1
		case x.events < y.events:
			return 1
		}
		return 0
	})
	newest := all[0]
	for _, m := range all {
		switch {
		case newest.events-m.events > 1:
			left = append(left, fmt.Errorf("%s: stale: the array %s has changed since, %d times", m.name, m.uuid, newest.events-m.events))
		case newest.faulty[m.index]:
			left = append(left, fmt.Errorf("%s: the array %s has it as faulty", m.name, m.uuid))
		case slices.ContainsFunc(out, func(o member) bool { return o.index == m.index }):
			left = append(left, fmt.Errorf("%s: a second device %d of the array %s", m.name, m.index, m.uuid))
		default:
			out = append(out, m)
		}
	}
	return out, left
}
