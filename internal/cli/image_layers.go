package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vmm/bootloader/disk"
	"vmm/internal/visible"
	"vmm/storage"
	"vmm/storage/image"
	"vmm/storage/qcow2"
	"vmm/vm"
)

func imageCommit() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "commit IMAGE", Short: "Write a layer's content to its backing file, and empty the layer", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := image.Open(args[0], image.Options{Format: f.format, AnyBacking: f.backingAny, WriteBacking: true})
			if err != nil {
				return failed(err)
			}
			bar := newProgress("committing")
			err = errors.Join(img.Commit(bar.until(cmd.Context())), img.Close())
			bar.end()
			return failed(err)
		},
	}
	f.add(cmd)
	return cmd
}

func imageRebase() *cobra.Command {
	var f imageFlags
	var backing, format string
	var unsafe bool
	cmd := &cobra.Command{
		Use: "rebase --backing FILE IMAGE", Short: "Give a layer another backing file", Args: cobra.ExactArgs(1),
		Long: "rebase changes what is under a layer. What the layer shows stays the same: it gets what\n" +
			"the old backing file has and the new one has not. --backing \"\" makes it stand alone.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("backing") {
				return &exitError{statusUsage, errors.New("rebase: onto what? give --backing FILE, or \"\" for none")}
			}
			if unsafe { // the old one need not even be there
				return failed(rebaseHeader(args[0], backing, format))
			}
			return f.withImage(args[0], true, func(img *image.Image) error {
				bar := newProgress("rebasing")
				defer bar.end()
				return img.Rebase(backing, format, bar.until(cmd.Context()))
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVarP(&backing, "backing", "b", "", "the new backing `FILE`, relative to the image")
	cmd.Flags().StringVar(&format, "backing-format", "", "its format: raw or qcow2; found out if not given")
	cmd.Flags().BoolVarP(&unsafe, "unsafe", "u", false, "change the name only: for a backing file that was moved")
	return cmd
}

func rebaseHeader(path, backing, format string) error {
	file, err := storage.OpenFile(path, false, "")
	if err != nil {
		return err
	}
	img, err := qcow2.Open(file)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	return errors.Join(img.SetBackingFile(backing, format), img.Close())
}

func imageMap() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "map IMAGE", Short: "Show where a disk's data is", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.withImage(args[0], false, func(img *image.Image) error {
				return mapImage(cmd.OutOrStdout(), img, f.json)
			})
		},
	}
	f.add(cmd)
	f.addJSON(cmd)
	return cmd
}

func mapImage(w io.Writer, img *image.Image, asJSON bool) error {
	chain := img.Chain()
	var extents []storage.Extent
	err := image.Map(img, func(e storage.Extent) error {
		if asJSON || e.Data {
			extents = append(extents, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, extents)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "START\tLENGTH\tAT\tFILE")
	for _, e := range extents {
		at := "compressed"
		if e.Offset >= 0 {
			at = fmt.Sprintf("%#x", e.Offset)
		}
		fmt.Fprintf(t, "%#x\t%#x\t%s\t%s\n", e.Start, e.Length, at, visible.Line(chain[min(e.Depth, len(chain)-1)].File.Name()))
	}
	return t.Flush()
}

func imageDiff() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "diff A B", Short: "Compare what two disks show", Args: cobra.ExactArgs(2),
		Long: "diff prints the ranges in which the disks differ. Exit status: 0 they are the same, 1 they differ.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.withImage(args[0], false, func(a *image.Image) error {
				return f.withImage(args[1], false, func(b *image.Image) error {
					return diff(cmd.Context(), cmd.OutOrStdout(), a, b, f.json)
				})
			})
		},
	}
	f.add(cmd)
	f.addJSON(cmd)
	return cmd
}

func diff(ctx context.Context, w io.Writer, a, b *image.Image, asJSON bool) error {
	bar := newProgress("comparing")
	ranges := []image.Range{}
	total := int64(0)
	err := image.Diff(a, b, bar.until(ctx), func(r image.Range) error {
		ranges, total = append(ranges, r), total+r.Length
		return nil
	})
	bar.end()
	if err != nil {
		return err
	}
	if asJSON {
		if err := printJSON(w, ranges); err != nil {
			return err
		}
	} else {
		for _, r := range ranges {
			fmt.Fprintf(w, "%#x-%#x\t%s\n", r.Start, r.Start+r.Length, humanSize(r.Length))
		}
		if a.Size() != b.Size() {
			fmt.Fprintf(w, "sizes differ: %d and %d bytes\n", a.Size(), b.Size())
		}
		if total > 0 {
			fmt.Fprintf(w, "%s differ in %d ranges\n", humanSize(total), len(ranges))
		}
	}
	if len(ranges) > 0 || a.Size() != b.Size() {
		return &exitError{statusDiffers, nil}
	}
	return nil
}

func imageBootEntries() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "boot-entries IMAGE...", Short: "List what a disk can boot", Args: cobra.MinimumNArgs(1),
		Long: "boot-entries lists the entries of GRUB, of the Boot Loader Specification or of extlinux, or\n" +
			"the kernels in /boot. The first is what vmm run --disk IMAGE boots, unless it is not wholly understood.\n" +
			"Further images are the disks behind it, over which its RAID or volume group may reach.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.withImages(args, nil, func(disks []*image.Image) error {
				builder, built := setupBuilder()
				entries, err := vm.BootEntries(cmd.Context(), disks, vm.WithBuilder(builder), vm.WithLog(func(err error) {
					fmt.Fprintf(cmd.ErrOrStderr(), "vmm: %s\n", visible.Text(err.Error()))
				}))
				built()
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				if f.json {
					return printJSON(cmd.OutOrStdout(), entries)
				}
				out := visible.NewWriter(cmd.OutOrStdout())
				for i, e := range entries {
					printBootEntry(out, i+1, e)
				}
				return nil
			})
		},
	}
	f.add(cmd)
	f.addJSON(cmd)
	return cmd
}

// printBootEntry shows an entry of a list.
func printBootEntry(w io.Writer, number int, e *disk.Entry) {
	title := e.Title
	if e.Menu != "" {
		title = e.Menu + ">" + e.Title
	}
	fmt.Fprintf(w, "%d  %s\n     kernel %s\n     initrd %s\n     arguments %s\n", number, title, e.Kernel, strings.Join(e.Initrds, " "), e.Args)
	for _, what := range e.Unclear {
		fmt.Fprintf(w, "     not understood: %s\n", what)
	}
}

func imageTree() *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use: "tree [DIRECTORY|IMAGE]", Short: "Show a directory's images, or those below one, as layers over each other", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			roots, err := image.Tree(append(args, ".")[0])
			if err != nil {
				return failed(err)
			}
			if f.json {
				return failed(printJSON(cmd.OutOrStdout(), roots))
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			fmt.Fprintln(t, "IMAGE\tFORMAT\tVIRTUAL SIZE\tOWN SIZE")
			for _, n := range roots {
				printTree(t, n, "", "")
			}
			return failed(t.Flush())
		},
	}
	f.addJSON(cmd)
	return cmd
}

func printTree(w io.Writer, n *image.Node, lead, below string) {
	name := filepath.Clean(n.Path)
	if lead != "" {
		name = filepath.Base(name)
	}
	name = visible.Line(name)
	if n.Error != "" {
		fmt.Fprintf(w, "%s%s\t%s\n", lead, name, visible.Line(n.Error))
	} else {
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\n", lead, name, n.Format, humanSize(n.VirtualSize), humanSize(n.OwnSize))
	}
	for k, o := range n.Overlays {
		if k == len(n.Overlays)-1 {
			printTree(w, o, below+"└─ ", below+"   ")
		} else {
			printTree(w, o, below+"├─ ", below+"│  ")
		}
	}
}
