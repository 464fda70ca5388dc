package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmm/guest-images/lvm"
	"vmm/guest-images/md"
)

// ArraysPath is where a guest that has found volumes tells of the arrays among them, in lines of
// DEVICE MEMBER,MEMBER... UUID NAME. The name may be empty.
const ArraysPath = "/run/arrays"

// findVolumes makes devices of the arrays on the guest's virtio disks, and of the logical
// volumes on both. A member of an array is no physical volume, although it may look like one.
func findVolumes() error {
	devices, err := filepath.Glob("/dev/vd*")
	if err != nil {
		return err
	}
	arrays, devices, err := md.Activate(devices...)
	var list strings.Builder
	for _, a := range arrays {
		fmt.Fprintf(&list, "%s %s %s %s\n", a.Name, strings.Join(a.Members, ","), a.UUID, a.Label)
	}
	return errors.Join(err, os.WriteFile(ArraysPath, []byte(list.String()), 0o644), lvm.Activate(devices...))
}
