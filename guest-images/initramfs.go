package guestimages

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"vmm/guest-images/guestinit"
	"vmm/internal/elf"
)

// Initramfs returns the default initial RAM disk, an uncompressed cpio
// archive: busybox, and as /init the program that make embeds, or this very one.
func (b *Builder) Initramfs(ctx context.Context) ([]byte, error) {
	busybox, err := b.busybox(ctx)
	if err != nil {
		return nil, err
	}
	init, err := guestInit()
	if err != nil {
		return nil, err
	}
	return initramfs(init, busybox)
}

// Archive makes an initial RAM disk of files, to be joined to the default one.
func Archive(files ...cpio.Record) ([]byte, error) {
	var out bytes.Buffer
	size := 0
	for _, f := range files {
		size += recordRoom + int(f.FileSize)
	}
	out.Grow(size) // the largest of what a VM needs at its start: once is enough
	w := cpio.Newc.Writer(&out)
	if err := cpio.WriteRecordsAndDirs(w, files); err != nil {
		return nil, err
	}
	err := cpio.WriteTrailer(w)
	return out.Bytes(), err
}

// recordRoom is for a file's header, its name and those of its directories.
const recordRoom = 512

// dhcpScript is called by udhcpc with what it was told. The first interface that
// has a router keeps it.
//
//go:embed dhcp.sh
var dhcpScript string

type busyboxFiles struct {
	binary  []byte
	applets []string
}

// Busybox returns Debian's static busybox.
func (b *Builder) Busybox(ctx context.Context) ([]byte, error) {
	files, err := b.busybox(ctx)
	if err != nil {
		return nil, err
	}
	return files.binary, nil
}

// busybox returns Debian's static busybox and the names of its applets.
func (b *Builder) busybox(ctx context.Context) (*busyboxFiles, error) {
	dir, err := b.Once(ctx, "busybox", func(ctx context.Context, dir string) error {
		err := b.fetch(ctx, &apt{}, "busybox-static", dir)
		if errors.Is(err, ErrNoApt) {
			return hostBusybox(ctx, dir)
		}
		if err != nil {
			return err
		}
		for _, p := range []string{"bin/busybox", "usr/bin/busybox"} {
			if os.Rename(filepath.Join(dir, p), filepath.Join(dir, "busybox")) == nil {
				return listApplets(ctx, dir)
			}
		}
		return fmt.Errorf("package busybox-static has no busybox")
	})
	if err != nil {
		return nil, err
	}
	binary, err := os.ReadFile(filepath.Join(dir, "busybox"))
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(dir, "applets"))
	return &busyboxFiles{binary, strings.Fields(string(list))}, err
}

// listApplets writes down the names of the applets of the busybox in dir.
func listApplets(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "busybox"), "--list").Output()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "applets"), out, 0o644)
}

// hostBusybox takes the static busybox of a host that has no apt-get. Distributions
// call it by one of two names.
func hostBusybox(ctx context.Context, dir string) error {
	for _, name := range []string{"busybox.static", "busybox"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		binary, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if static, err := isStatic(binary); err != nil || !static {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "busybox"), binary, 0o755); err != nil {
			return err
		}
		return listApplets(ctx, dir)
	}
	return errors.New("neither apt-get nor a static busybox is here: install a package such as busybox or busybox-static")
}

// embedded has the guest's init in init.zst, if make has built it.
//
//go:embed embedded/*.*
var embedded embed.FS

// guestInit returns the program for /init.
func guestInit() ([]byte, error) {
	packed, err := embedded.ReadFile("embedded/init.zst")
	if errors.Is(err, fs.ErrNotExist) {
		return selfStatic()
	}
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.DecodeAll(packed, nil)
}

// selfStatic reads this program, which can be the guest's init too.
func selfStatic() ([]byte, error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	static, err := isStatic(self)
	if err == nil && !static {
		err = errors.New("this vmm is linked dynamically, so it cannot be the guest's init: build it with CGO_ENABLED=0")
	}
	return self, err
}

// isStatic reports whether a program needs no dynamic linker.
func isStatic(program []byte) (bool, error) {
	f, err := elf.Read(bytes.NewReader(program))
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(f.Segments, func(s elf.Segment) bool { return s.Type == elf.Interpreter }), nil
}

// program is an executable file.
func program(name string, content []byte) cpio.Record {
	return cpio.StaticRecord(content, cpio.Info{Name: name, Mode: cpio.S_IFREG | 0o755})
}

func initramfs(init []byte, busybox *busyboxFiles) ([]byte, error) {
	var files []cpio.Record
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "mnt"} {
		files = append(files, cpio.Directory(d, 0o755))
	}
	files = append(files,
		program("init", init),
		program("bin/busybox", busybox.binary),
		// What the kernel gives PID 1 as its standard streams.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		// What Go takes where there is no console yet: its driver may be a module.
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.StaticFile("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
		cpio.StaticFile("etc/group", "root:x:0:\n", 0o644),
		cpio.StaticFile("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
		cpio.StaticFile(strings.TrimPrefix(guestinit.DHCPScript, "/"), dhcpScript, 0o755))
	for _, a := range busybox.applets {
		if a != "busybox" {
			files = append(files, cpio.Symlink("bin/"+a, "busybox"))
		}
	}
	return Archive(files...)
}
