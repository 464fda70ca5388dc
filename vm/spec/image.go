package spec

import (
	"errors"
	"net/netip"
	"strings"

	"vmm/vm"
)

// Tmpfs reads PATH[:OPTIONS], a file system in the guest's memory.
func Tmpfs(text string) (vm.Tmpfs, error) {
	path, options, _ := strings.Cut(text, ":")
	if !strings.HasPrefix(path, "/") || path == "/" {
		return vm.Tmpfs{}, errors.New(text + ": PATH or PATH:OPTIONS, with an absolute path below /")
	}
	return vm.Tmpfs{Guest: path, Options: options}, nil
}

// HostName reads NAME:ADDRESS, a name for /etc/hosts. An address of IPv6 may be in brackets.
func HostName(text string) (vm.HostName, error) {
	name, address, _ := strings.Cut(text, ":")
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"))
	if err != nil || name == "" {
		return vm.HostName{}, errors.New(text + ": NAME:ADDRESS, such as db:10.0.0.5")
	}
	return vm.HostName{Name: name, Address: addr}, nil
}
