package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"vmm/internal/bytesize"
	"vmm/internal/paths"
	"vmm/network/gateway"
	"vmm/storage/oci"
	"vmm/vm"
	"vmm/vm/rootdisk"
	"vmm/vm/spec"
)

// When a container image is pulled.
const (
	pullMissing = "missing" // if it is not here
	pullAlways  = "always"
	pullNever   = "never"
)

// runImageFlags are the flags of vmm run for a container image.
type runImageFlags struct {
	image      string
	entrypoint string
	systemd    bool
	pull       string
	envFiles   []string
	readOnly   bool
	tmpfs      []string
	hosts      []string
	publishAll bool
	rootSize   bytesize.Size
	rootDir    string
	registry   oci.Registry
}

func (f *runImageFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.image, "image", "", "a container `IMAGE` as the guest's root, such as debian:12; it is pulled if it is not here (see vmm images)")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "with --image: the `PROGRAM` to run in the place of the image's entry point")
	fl.BoolVar(&f.systemd, "systemd", false, "with --image: PID 1 of the guest is the image's init, such as systemd: its command if that is one, or COMMAND, else /sbin/init or /init")
	fl.StringVar(&f.pull, "pull", pullMissing, "with --image: when to pull it: missing, always or never")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "take environment variables from `FILE`, a line each as --env has them; several are possible")
	fl.BoolVar(&f.readOnly, "read-only", false, "with --image: nobody can write to the root, but to what is mounted in it")
	fl.Var(&f.rootSize, "root-size", "with --image: what is written to the root goes to a disk with `SIZE` of room, such as 8G, which is kept until vmm rm of the VM's name; without --name and -d, it goes with the VM")
	fl.StringVar(&f.rootDir, "root-dir", "", "with --image: what is written to the root goes to a `DIRECTORY` of the host, which is made if it is not there")
	fl.StringArrayVar(&f.tmpfs, "tmpfs", nil, "with --image: a file system in the guest's memory at `PATH[:OPTIONS]`, such as /run:size=64m; several are possible")
	fl.StringArrayVar(&f.hosts, "add-host", nil, "with --image: a name in the guest's /etc/hosts: `NAME:ADDRESS`; several are possible")
	fl.BoolVarP(&f.publishAll, "publish-all", "P", false, "with --image: publish the ports that the image exposes, each as a free one of the host's (see vmm port ls)")
	fl.BoolVar(&f.registry.Insecure, "insecure-registry", false, "with --image: allow a registry without HTTPS, or whose certificate no known authority has signed")
}

// ofImage are the flags that say something of an image only.
var ofImage = []string{"entrypoint", "systemd", "pull", "read-only", "root-size", "root-dir", "tmpfs", "add-host", "insecure-registry", "publish-all"}

// apply gives a session the image's root, and its command unless there is another, if there is
// an image.
func (f *runImageFlags) apply(ctx context.Context, s *session, fl *pflag.FlagSet) error {
	if f.image == "" {
		if i := slices.IndexFunc(ofImage, fl.Changed); i >= 0 {
			return usage("--%s goes with --image", ofImage[i])
		}
		return nil
	}
	c := s.Config
	if c.Root != nil {
		return usage("--image %s: a guest has one root, and --root or --rootfs is another", f.image)
	}
	if fl.Changed("root-size") {
		switch {
		case f.readOnly:
			return usage("--root-size: nothing is written to a root that is --read-only")
		case f.rootSize == 0:
			return usage("--root-size 0: some room, such as 8G")
		}
		s.RootSize = int64(f.rootSize)
	}
	switch {
	case fl.Changed("root-dir") && f.rootDir == "":
		return usage("--root-dir: no directory")
	case f.rootDir != "" && (f.readOnly || s.RootSize > 0):
		return usage("--root-dir goes with neither --root-size nor --read-only")
	}
	i, err := f.get(ctx)
	if err != nil {
		return failed(err)
	}
	settings := i.Config.Config
	root := &vm.ImageRoot{Name: f.image, Digest: i.Digest.String(), ReadOnly: f.readOnly, Defaults: vm.Defaults{Env: settings.Env, Dir: settings.WorkingDir, User: settings.User}}
	if root.Segments, err = i.Segments(); err != nil {
		return failed(err)
	}
	err = errors.Join(parse("tmpfs", f.tmpfs, spec.Tmpfs, &root.Tmpfs), parse("add-host", f.hosts, spec.HostName, &root.Hosts))
	if err != nil {
		return err
	}
	if f.rootDir != "" {
		dir, err := paths.Abs(f.rootDir)
		if err == nil {
			root.Dir, err = rootdisk.TakeDir(dir, root.Digest)
		}
		if err != nil {
			return failed(fmt.Errorf("--root-dir: %w", err))
		}
	}
	root.Volumes = slices.Sorted(maps.Keys(settings.Volumes))
	c.Root = &vm.Root{Image: root}
	if s.StopSignal == 0 && settings.StopSignal != "" && !f.systemd {
		if s.StopSignal, err = readSignal(settings.StopSignal); err != nil {
			return failed(fmt.Errorf("the image %s: its signal to stop: %w", f.image, err))
		}
	}
	if c.Health == nil {
		if c.Health, err = imageHealth(settings.Healthcheck); err != nil {
			return failed(fmt.Errorf("the image %s: %w", f.image, err))
		}
	}
	c.Labels = mergeLabels(settings.Labels, c.Labels)
	if f.publishAll {
		if c.Publish, err = publishExposed(c.Publish, settings.ExposedPorts); err != nil {
			return failed(fmt.Errorf("the image %s: %w", f.image, err))
		}
	}
	return f.command(s, &settings, fl)
}

// command gives a session of an image what runs in it: a command, or the image's init.
func (f *runImageFlags) command(s *session, settings *v1.Config, fl *pflag.FlagSet) error {
	given := len(s.Command) > 0 || fl.Changed("entrypoint")
	argv := imageCommandLine(settings.Entrypoint, settings.Cmd, s.Command, f.entrypoint, fl.Changed("entrypoint"))
	if !f.systemd {
		if s.Command = argv; len(argv) == 0 {
			return usage("the image %s says no command: give one: vmm run --image %s -- COMMAND", f.image, f.image)
		}
		return nil
	}
	root := s.Config.Root.Image
	root.Init, s.Command = &vm.Init{}, nil
	if given || startsInit(argv) {
		root.Init.Argv = argv
	}
	root.Defaults.Env = append(slices.Clone(settings.Env), s.Exec.Env...)
	return nil
}

// inits are programs that podman takes for an init, too (podman-run(1), --systemd).
var inits = append([]string{"/usr/sbin/init", "/usr/local/sbin/init"}, vm.InitPrograms...)

// startsInit reports whether a command is an init, or an image's entry point that is to start one.
func startsInit(argv []string) bool {
	return slices.ContainsFunc(argv, func(s string) bool { return slices.Contains(inits, s) || path.Base(s) == "systemd" })
}

// mergeLabels are the labels of an image, and those that the user gives, which win.
func mergeLabels(image, given map[string]string) map[string]string {
	out := maps.Clone(image)
	if out == nil {
		return given
	}
	maps.Copy(out, given)
	return out
}

// publishExposed adds the ports that an image exposes (OCI image specification, "config.ExposedPorts":
// PORT, PORT/tcp or PORT/udp), but for those that are published already.
func publishExposed(list []gateway.Publication, exposed map[string]struct{}) ([]gateway.Publication, error) {
	list = slices.Clone(list)
	for _, port := range slices.Sorted(maps.Keys(exposed)) {
		ports, err := gateway.ParsePublications(port)
		if strings.Contains(port, ":") { // which would name the host's port, too
			err = fmt.Errorf("%q is no port of a guest", port)
		}
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			same := func(o gateway.Publication) bool { return o.UDP == p.UDP && o.Guest == p.Guest }
			if !slices.ContainsFunc(list, same) {
				list = append(list, p)
			}
		}
	}
	return list, nil
}

// imageCommandLine is what runs, as docker has it: the entry point with the command of the
// image, or with another; an entry point that is given goes without the image's command, and ""
// is none.
func imageCommandLine(entrypoint, command, given []string, other string, otherGiven bool) []string {
	if otherGiven {
		entrypoint, command = nil, nil
		if other != "" {
			entrypoint = []string{other}
		}
	}
	if len(given) > 0 {
		command = given
	}
	return append(append([]string{}, entrypoint...), command...)
}

// get finds the image, or pulls it.
func (f *runImageFlags) get(ctx context.Context) (*oci.Image, error) {
	store, err := openStore()
	if err != nil {
		return nil, err
	}
	switch f.pull {
	case pullAlways:
		return pullImage(ctx, store, f.image, f.registry, false)
	case pullMissing, pullNever:
	default:
		return nil, usage("--pull %s: missing, always or never", f.pull)
	}
	i, err := store.Get(f.image)
	if errors.Is(err, oci.ErrNotFound) && f.pull == pullMissing {
		if _, bad := oci.ParseName(f.image); bad != nil {
			return nil, bad
		}
		return pullImage(ctx, store, f.image, f.registry, false)
	}
	return i, err
}

// readEnvFiles reads files of environment variables: NAME=VALUE, or NAME as it is here, a line
// each. Empty lines, and those that begin with #, are left out.
func readEnvFiles(files []string) (out []string, err error) {
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, failed(fmt.Errorf("--env-file: %w", err))
		}
		for n, line := range strings.Split(string(b), "\n") {
			line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			if variable, _, _ := strings.Cut(line, "="); variable == "" || strings.ContainsAny(variable, " \t") {
				return nil, usage("--env-file %s, line %d: %q is no NAME=VALUE", name, n+1, line)
			}
			out = append(out, line)
		}
	}
	return out, nil
}
