package md

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Array is an array that was started.
type Array struct {
	Name  string // of its device in /dev, such as md0
	UUID  string // 32 hexadecimal digits, as mdadm has them without colons
	Label string // the array's own name, without that of its host; it may be empty
	// Members are the names of all devices that say they are members, also of those that the array
	// has gone on without.
	Members []string
}

// Bounds of what is started.
const (
	maxArrays = 64
	maxDepth  = 4 // arrays in arrays
)

// highest is the number from which on downwards arrays without one of their own get theirs, as
// with mdadm.
const highest = 127

// Activate starts the arrays on some block devices, and those on the arrays, as read-only
// devices. rest are all the devices that are no members of these, with the arrays and their
// partitions. What could not be started is in the error.
func Activate(paths ...string) (arrays []Array, rest []string, err error) {
	s := starter{"/sys/", map[int]bool{}}
	var errs []error
	for range maxDepth {
		members, err := read(paths)
		errs = append(errs, err)
		found, left := assemble(members)
		errs = append(errs, left...)
		used := map[string]bool{} // devices, and disks whose partitions are the array's
		var next []string
		for _, a := range found {
			started, refused, err := s.start(a)
			errs = append(errs, refused...)
			if err != nil {
				errs = append(errs, fmt.Errorf("the array %s: %w", a.members[0].uuid, err))
				continue
			}
			arrays = append(arrays, started)
			for _, name := range a.names {
				used[name] = true
			}
			devices, err := withPartitions("/dev/" + started.Name)
			errs, next = append(errs, err), append(next, devices...)
		}
		for _, path := range paths {
			d, err := describe(path)
			if err != nil || !used[d.name] && !used[d.disk] {
				rest = append(rest, path)
			}
		}
		if paths = next; len(paths) == 0 {
			break
		}
	}
	return arrays, append(rest, paths...), errors.Join(errs...)
}

// read finds the members among devices.
func read(paths []string) (members []member, err error) {
	var errs []error
	for _, path := range paths {
		s, err := readDevice(path)
		if errors.Is(err, errNone) {
			continue
		}
		d, e := describe(path)
		if err = errors.Join(err, e); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		members = append(members, member{d, s})
	}
	return members, errors.Join(errs...)
}

func readDevice(path string) (*superblock, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	return readSuperblock(f, size)
}

// describe asks the kernel about a device.
func describe(path string) (d device, err error) {
	d.name = filepath.Base(path)
	dir, err := filepath.EvalSymlinks("/sys/class/block/" + d.name)
	if err != nil {
		return d, err
	}
	if d.number, err = attribute(dir, "dev"); err != nil {
		return d, err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return d, nil
	}
	d.disk = filepath.Base(filepath.Dir(dir))
	start, err := attribute(dir, "start")
	if err != nil {
		return d, err
	}
	sectors, err := strconv.ParseInt(start, 10, 54)
	d.start = sectors * sector
	return d, err
}

// attribute reads an attribute of sysfs.
func attribute(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b)), err
}

// withPartitions are a device of md and its partitions, for which the kernel looks when it is
// opened.
func withPartitions(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f.Close()
	partitions, err := filepath.Glob(path + "p[0-9]*")
	return append([]string{path}, partitions...), err
}

// starter starts arrays by the attributes that md has in sysfs (Linux,
// Documentation/admin-guide/md.rst).
type starter struct {
	sys   string // where sysfs is, with a slash
	taken map[int]bool
}

// start has the kernel start an array. It is told that nothing is to be written before it
// looks at the members, and which those are; all else it reads from their superblocks. refused
// are members that it did not take.
func (s *starter) start(a array) (out Array, refused []error, err error) {
	if len(s.taken) >= maxArrays {
		return out, nil, fmt.Errorf("more than %d arrays", maxArrays)
	}
	newest := a.members[0]
	number := newest.minor
	for free := highest; number < 0 || s.taken[number]; free-- {
		number = free
	}
	s.taken[number] = true
	out = Array{Name: fmt.Sprintf("md%d", number), UUID: newest.uuid, Label: newest.label, Members: a.names}
	if err := write(filepath.Join(s.sys, "module/md_mod/parameters/new_array"), out.Name); err != nil {
		return out, nil, err
	}
	set := func(attribute, value string) error {
		return write(filepath.Join(s.sys, "block", out.Name, "md", attribute), value)
	}
	if err = set("metadata_version", newest.version); err == nil {
		for _, m := range a.members {
			if e := set("new_dev", m.number); e != nil {
				refused = append(refused, fmt.Errorf("%s: %w", m.name, e))
			}
		}
		err = set("array_state", "readonly")
	}
	if err != nil {
		err = errors.Join(err, set("array_state", "clear"))
	}
	return out, refused, err
}

// write writes an attribute of sysfs.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
