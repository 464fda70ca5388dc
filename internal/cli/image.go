package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vmm/internal/bytesize"
	"vmm/internal/paths"
	"vmm/internal/visible"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/storage/qcow2"
	"vmm/vm/api"
	"vmm/vm/server"
)

// statusDiffers is vmm image diff's for images that differ, as diff(1)'s;
// statusLeaks and statusCorrupt are vmm image check's, as qemu-img's.
const (
	statusDiffers = 1
	statusCorrupt = 2
	statusLeaks   = 3
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make, look at and change disk images",
		Long: "image works on raw and qcow2 disk images. A qcow2 image can be a layer over a\n" +
			"backing file: it holds only what differs from it.",
		Example: "  vmm image create -s 10G disk.qcow2\n" +
			"  vmm image create --backing base.qcow2 layer.qcow2\n" +
			"  vmm image tree",
	}
	cmd.AddCommand(imageCreate(), imageInfo(), imageCheck(), imageConvert(), imageResize(), imageCommit(),
		imageRebase(), imageMap(), imageDiff(), imageTree(), imageBootEntries())
	return cmd
}

// imageFlags are those that several commands have.
type imageFlags struct {
	format     string
	backingAny bool
	json       bool
}

func (f *imageFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.format, "format", "f", "", "the image's format: raw or qcow2; found out if not given")
	cmd.Flags().BoolVar(&f.backingAny, "backing-any", false, "allow a raw backing file outside of the image's directory")
}

func (f *imageFlags) addJSON(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

func (f *imageFlags) open(path string, write bool) (*image.Image, error) {
	return image.Open(path, image.Options{Format: f.format, ReadOnly: !write, AnyBacking: f.backingAny})
}

// withImage opens an image, and closes it after do.
func (f *imageFlags) withImage(path string, write bool, do func(*image.Image) error) error {
	img, err := f.open(path, write)
	if err != nil {
		return failed(err)
	}
	err = do(img)
	var exit *exitError
	if closing := img.Close(); errors.As(err, &exit) && closing == nil {
		return err
	} else {
		return failed(errors.Join(err, closing))
	}
}

// withImages opens images for reading behind those that are open, and closes them after do.
func (f *imageFlags) withImages(paths []string, open []*image.Image, do func([]*image.Image) error) error {
	if len(paths) == 0 {
		return do(open)
	}
	return f.withImage(paths[0], false, func(img *image.Image) error {
		return f.withImages(paths[1:], append(open, img), do)
	})
}

// humanSize is a size as people read it.
func humanSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.3g %ciB", v, units[unit])
}

func imageCreate() *cobra.Command {
	var o image.CreateOptions
	var size, cluster bytesize.Size
	cmd := &cobra.Command{
		Use: "create [-s SIZE] [--backing FILE] IMAGE", Short: "Make a new image", Args: cobra.ExactArgs(1),
		Long: "create makes an image that takes no space yet. With --backing it is a layer over that\n" +
			"file, named as it is stored: relative to the new image. Its size is the backing file's then.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Size, o.ClusterSize = int64(size), int64(cluster)
			if o.Size == 0 && o.Backing == "" {
				return &exitError{statusUsage, errors.New("create: how large? give -s SIZE, or --backing FILE")}
			}
			return failed(image.Create(args[0], o))
		},
	}
	fl := cmd.Flags()
	fl.VarP(&size, "size", "s", "the disk's `SIZE`, such as 10G")
	fl.StringVarP(&o.Backing, "backing", "b", "", "backing `FILE`")
	fl.StringVar(&o.BackingFormat, "backing-format", "", "its format: raw or qcow2; found out if not given")
	fl.StringVarP(&o.Format, "format", "f", "", "raw or qcow2; qcow2 unless the name ends in .raw")
	fl.Var(&cluster, "cluster-size", "`SIZE` of clusters, 512 bytes to 2M; 64K if not given")
	fl.BoolVar(&o.LazyRefcounts, "lazy-refcounts", false, "count references only when the image is closed; a crash costs a check")
	return cmd
}

// imageInfoJSON is what info prints.
type imageInfoJSON struct {
	Path          string      `json:"path"`
	Format        string      `json:"format"`
	VirtualSize   int64       `json:"virtual-size"`
	OwnSize       int64       `json:"own-size"`
	Backing       string      `json:"backing-file,omitempty"`
	BackingFormat string      `json:"backing-format,omitempty"`
	Qcow2         *qcow2.Info `json:"qcow2,omitempty"`
}

func imageInfo() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "info IMAGE", Short: "Tell what an image is", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.withImage(args[0], false, func(top *image.Image) error {
				var all []imageInfoJSON
				for _, i := range top.Chain() {
					info := imageInfoJSON{Path: i.File.Name(), Format: i.Format, VirtualSize: i.Size(), OwnSize: i.File.Allocated()}
					if i.Qcow2 != nil {
						q := i.Qcow2.Info()
						info.Qcow2 = &q
						info.Backing, info.BackingFormat = i.Qcow2.BackingFile()
					}
					all = append(all, info)
				}
				if f.json {
					return printJSON(cmd.OutOrStdout(), all)
				}
				for n, i := range all {
					if n > 0 {
						fmt.Fprintln(cmd.OutOrStdout())
					}
					i.print(cmd.OutOrStdout())
				}
				return nil
			})
		},
	}
	f.add(cmd)
	f.addJSON(cmd)
	return cmd
}

func (i *imageInfoJSON) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, visible.Line(fmt.Sprintf(format, args...)))
	}
	line("image", "%s", i.Path)
	line("format", "%s", i.Format)
	line("virtual size", "%s (%d bytes)", humanSize(i.VirtualSize), i.VirtualSize)
	line("own size", "%s", humanSize(i.OwnSize))
	if i.Backing != "" {
		line("backing file", "%s", i.Backing)
		if i.BackingFormat != "" {
			line("backing format", "%s", i.BackingFormat)
		}
	}
	q := i.Qcow2
	if q == nil {
		return
	}
	line("version", "%d", q.Version)
	line("cluster size", "%s", humanSize(q.ClusterSize))
	line("refcounts", "%d bits%s", q.RefcountBits, map[bool]string{true: ", lazy"}[q.LazyRefcounts])
	line("compression", "%s", q.Compression)
	for _, flag := range []struct {
		name string
		on   bool
	}{{"extended L2 entries", q.ExtendedL2}, {"dirty", q.Dirty}, {"corrupt", q.Corrupt}} {
		if flag.on {
			line(flag.name, "yes")
		}
	}
	if q.Snapshots > 0 {
		line("internal snapshots", "%d", q.Snapshots)
	}
}

func imageCheck() *cobra.Command {
	var f imageFlags
	var repair bool
	cmd := &cobra.Command{
		Use: "check IMAGE", Short: "Look for errors in a qcow2 image", Args: cobra.ExactArgs(1),
		Long: "check compares the image's reference counts with its tables. Exit status: 0 all is well (or\n" +
			"is now), 2 the image is corrupt, 3 it only has leaked clusters, 125 it cannot be read.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return checkImage(cmd.OutOrStdout(), args[0], repair, f.json)
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "put the reference counts right")
	f.addJSON(cmd)
	return cmd
}

func checkImage(w io.Writer, path string, repair, asJSON bool) error {
	file, err := storage.OpenFile(path, !repair, "")
	if err != nil {
		return failed(err)
	}
	img, err := qcow2.OpenForCheck(file)
	if errors.Is(err, qcow2.ErrNotQcow2) {
		err = fmt.Errorf("%w: there is nothing to check in other formats", err)
	}
	if err != nil {
		return failed(errors.Join(err, file.Close()))
	}
	r, err := img.Check(repair)
	if err = errors.Join(err, file.Close()); r == nil {
		return failed(err)
	}
	if asJSON {
		if err := printJSON(w, r); err != nil {
			return failed(err)
		}
	} else {
		printCheck(w, r)
	}
	switch {
	case err != nil:
		return failed(err)
	case r.Repaired:
		return nil
	case r.Corruptions > 0:
		return &exitError{statusCorrupt, nil}
	case r.Leaks > 0:
		return &exitError{statusLeaks, nil}
	}
	return nil
}

func printCheck(w io.Writer, r *qcow2.CheckResult) {
	for _, m := range r.Messages {
		fmt.Fprintln(w, m)
	}
	switch {
	case r.Corruptions+r.Leaks == 0:
		fmt.Fprintln(w, "no errors")
	case r.Repaired:
		fmt.Fprintf(w, "%d errors and %d leaked clusters: repaired\n", r.Corruptions, r.Leaks)
	default:
		fmt.Fprintf(w, "%d errors and %d leaked clusters\n", r.Corruptions, r.Leaks)
	}
	if r.Total > 0 {
		fmt.Fprintf(w, "%d of %d clusters are allocated (%.1f %%), %d of them compressed\n",
			r.Allocated, r.Total, 100*float64(r.Allocated)/float64(r.Total), r.Compressed)
	}
}

func imageConvert() *cobra.Command {
	var f imageFlags
	var o image.CreateOptions
	var cluster bytesize.Size
	cmd := &cobra.Command{
		Use: "convert SOURCE TARGET", Short: "Copy an image with its backing chain into a new one", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.ClusterSize = int64(cluster)
			return f.withImage(args[0], false, func(from *image.Image) error {
				o.Size = from.Size()
				return convert(cmd.Context(), from, args[1], o)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVarP(&o.Format, "output-format", "O", "", "raw or qcow2; qcow2 unless the name ends in .raw")
	cmd.Flags().Var(&cluster, "cluster-size", "`SIZE` of the new image's clusters; 64K if not given")
	return cmd
}

func convert(ctx context.Context, from *image.Image, path string, o image.CreateOptions) error {
	if err := image.Create(path, o); err != nil {
		return err
	}
	to, err := image.Open(path, image.Options{Format: o.Format, Cache: storage.Writeback})
	if err != nil {
		return err
	}
	bar := newProgress("converting")
	err = errors.Join(image.Copy(from, to, bar.until(ctx)), to.Close())
	bar.end()
	if err != nil {
		os.Remove(path)
	}
	return err
}

func imageResize() *cobra.Command {
	var f imageFlags
	var shrink bool
	cmd := &cobra.Command{
		Use: "resize IMAGE [+|-]SIZE", Short: "Change the size of a disk", Args: cobra.ExactArgs(2),
		Long: "resize changes the size of a disk. If a VM of vmm's uses it, the VM does it, and its guest\n" +
			"sees the new size at once.",
		Example: "  vmm image resize disk.qcow2 20G\n  vmm image resize disk.qcow2 +5G\n  vmm image resize --shrink disk.raw -- -1G",
		RunE: func(cmd *cobra.Command, args []string) error {
			sign := strings.Trim(args[1][:min(1, len(args[1]))], "0123456789")
			var n bytesize.Size
			if err := n.Set(strings.TrimLeft(args[1], "+-")); err != nil {
				return &exitError{statusUsage, fmt.Errorf("%s: %w", args[1], err)}
			}
			req := api.ResizeRequest{Path: args[0], Sign: sign, Size: int64(n), Shrink: shrink}
			err := f.withImage(args[0], true, func(img *image.Image) error {
				size, err := server.NewSize(&req, img.Size())
				if err != nil {
					return advise(err)
				}
				return img.Resize(size)
			})
			var locked *storage.LockError
			if errors.As(err, &locked) && locked.Process != 0 {
				if vm, none := findRunning(cmd.Context(), strconv.Itoa(locked.Process)); none == nil {
					if req.Path, err = paths.Real(req.Path); err != nil {
						return failed(err)
					}
					return failed(advise(ask(vm).Resize(cmd.Context(), req)))
				}
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&shrink, "shrink", false, "allow a smaller size; what is beyond it is lost")
	return cmd
}
