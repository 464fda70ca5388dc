package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmm/bootloader"
	"vmm/bootloader/disk"
	"vmm/storage"
	"vmm/storage/image"
)

// BootEntries lists what the first of some disks can boot: Boot.Entry names one. The first is
// the default. File systems that this program does not read are read by the default guest, which
// takes some seconds: WithLog is told, and WithBuilder makes it. It has all of the disks, over
// which arrays and volume groups may reach.
func BootEntries(ctx context.Context, disks []*image.Image, list ...Option) ([]*disk.Entry, error) {
	entries, closeGuest, err := bootEntries(ctx, disks, newOptions(list))
	return entries, errors.Join(err, closeGuest())
}

// bootEntries is BootEntries; the entries can be loaded until closeGuest, which is never
// nil, is called.
func bootEntries(ctx context.Context, disks []*image.Image, o *options) (entries []*disk.Entry, closeGuest func() error, err error) {
	closeGuest = func() error { return nil }
	if len(disks) == 0 {
		return nil, closeGuest, disk.ErrNoEntry
	}
	img := disks[0]
	r := storage.ReaderAt{Disk: img}
	entries, err = disk.Entries(r, img.Size())
	if err == nil {
		return entries, closeGuest, nil
	}
	unread := disk.UnreadPartitions(r, img.Size())
	if len(unread) == 0 {
		return nil, closeGuest, err
	}
	var kinds []string
	for _, u := range unread {
		if !slices.Contains(kinds, u.Kind) {
			kinds = append(kinds, u.Kind)
		}
	}
	o.log(fmt.Errorf("%s: a guest looks for what it boots, on %s", img.File.Name(), strings.Join(kinds, ", ")))
	guest, e := openForeign(ctx, disks, o)
	if e != nil {
		return nil, closeGuest, fmt.Errorf("%w (and no guest to read others can be had: %w)", err, e)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, foreignTime, errForeignTime) // also for what is loaded later
	end := func() error {
		cancel()
		return guest.Close()
	}
	more, err := guest.FileSystems(ctx, unread)
	if err == nil {
		entries, err = disk.Entries(r, img.Size(), more...)
	}
	if err != nil {
		return nil, closeGuest, errors.Join(err, end())
	}
	return entries, end, nil
}

// boot reads from the first disk what it would boot: the entry of a name, or the
// default.
func (s *diskSet) boot(ctx context.Context, name string, o *options) (_ *booted, err error) {
	img := s.disks[0].image
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", img.File.Name(), err)
		}
	}()
	var images []*image.Image
	for _, d := range s.disks {
		images = append(images, d.image)
	}
	entries, closeGuest, err := bootEntries(ctx, images, o)
	defer func() { err = errors.Join(err, closeGuest()) }()
	if err != nil {
		return nil, err
	}
	var e *disk.Entry
	if name != "" {
		e, err = disk.Find(entries, name)
	} else {
		e, err = disk.Default(entries)
	}
	if err != nil {
		return nil, err
	}
	data, initrds, err := e.Load()
	if err != nil {
		return nil, err
	}
	kernel, err := bootloader.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Kernel, err)
	}
	return &booted{kernel: kernel, initrds: initrds, args: []string{e.Args}}, nil
}
