package spec

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"vmm/vm"
)

// VolumeKind is what a Volume is of.
type VolumeKind string

// The values of VolumeKind, as docker's --mount type= has them.
const (
	BindVolume  VolumeKind = "bind"   // a directory of the host
	NamedVolume VolumeKind = "volume" // a directory that has a name
	TmpfsVolume VolumeKind = "tmpfs"  // the guest's memory
)

// Volume is something in the guest's root, as docker describes it.
type Volume struct {
	Kind     VolumeKind
	Source   string // a directory of the host, or a name
	Guest    string // absolute
	ReadOnly bool
	NoCopy   bool   // a volume that is empty stays so
	Make     bool   // the host's directory is made, if it is not there
	Options  string // of a tmpfs, as vm.Tmpfs has them
}

// What Volume and Mount read.
const (
	VolumeForm = "NAME:GUEST[:ro] or HOST:GUEST[:ro], where HOST begins with / or ."
	MountForm  = "type=bind|volume|tmpfs,source=HOST or NAME,target=GUEST[,readonly]"
)

// errAnonymous is the error for a volume without a name.
var errAnonymous = errors.New("a volume without a name would go with the VM, as all goes that is written beside volumes: NAME:GUEST keeps it")

// ReadVolume reads a volume as docker's -v has it (VolumeForm).
func ReadVolume(s string) (v Volume, err error) {
	parts := strings.Split(s, ":")
	if len(parts) == 1 && strings.HasPrefix(s, "/") {
		return v, fmt.Errorf("%s: %w", s, errAnonymous)
	}
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !path.IsAbs(parts[1]) {
		return v, fmt.Errorf("%q: %s", s, VolumeForm)
	}
	v = Volume{Kind: NamedVolume, Source: parts[0], Guest: path.Clean(parts[1])}
	if c := parts[0][0]; c == '/' || c == '.' || c == '~' {
		v.Kind, v.Make = BindVolume, true
	}
	if len(parts) == 3 {
		for _, option := range strings.Split(parts[2], ",") {
			switch option {
			case "ro":
				v.ReadOnly = true
			case "rw", "z", "Z", "cached", "delegated", "consistent": // what other systems need
			case "nocopy":
				v.NoCopy = true
			default:
				return v, fmt.Errorf("%s: %q is no option: ro, rw or nocopy", s, option)
			}
		}
	}
	return v, nil
}

// ReadMount reads a volume as docker's --mount has it (MountForm).
func ReadMount(s string) (v Volume, err error) {
	v.Kind = NamedVolume
	var tmpfs []string
	for _, part := range split(s) {
		key, value, given := strings.Cut(part, "=")
		switch key {
		case "type":
			v.Kind, err = oneOf(value, []VolumeKind{BindVolume, NamedVolume, TmpfsVolume})
		case "source", "src":
			v.Source = value
		case "target", "destination", "dst":
			v.Guest = value
		case "readonly", "ro":
			v.ReadOnly, err = onOff(switchWord(value), given)
		case "volume-nocopy":
			v.NoCopy, err = onOff(switchWord(value), given)
		case "bind-create-src":
			v.Make, err = onOff(switchWord(value), given)
		case "tmpfs-size":
			var n int64
			if n, err = bytes(value); err == nil {
				tmpfs = append(tmpfs, fmt.Sprintf("size=%d", n))
			}
		case "tmpfs-mode":
			tmpfs = append(tmpfs, "mode="+value)
		case "consistency", "bind-propagation":
		default:
			err = errors.New("no such option; " + MountForm)
		}
		if err != nil {
			return v, fmt.Errorf("%s: %s: %w", s, part, err)
		}
	}
	v.Options = strings.Join(tmpfs, ",")
	switch {
	case !path.IsAbs(v.Guest):
		err = fmt.Errorf("%s: target=, an absolute path in the guest", s)
	case v.Kind == TmpfsVolume && v.Source != "":
		err = fmt.Errorf("%s: a tmpfs has no source", s)
	case v.Kind == BindVolume && v.Source == "":
		err = fmt.Errorf("%s: source=, a directory of the host", s)
	case v.Kind == NamedVolume && v.Source == "":
		err = fmt.Errorf("%s: %w", s, errAnonymous)
	}
	v.Guest = path.Clean(v.Guest)
	return v, err
}

// switchWord is docker's 1 and 0 as onOff has them.
func switchWord(v string) string {
	switch v {
	case "1":
		return "on"
	case "0":
		return "off"
	}
	return v
}

// Tmpfs is the file system of a volume of that kind.
func (v *Volume) Tmpfs() vm.Tmpfs { return vm.Tmpfs{Guest: v.Guest, Options: v.Options} }
