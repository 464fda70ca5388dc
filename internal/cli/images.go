package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"vmm/internal/visible"
	"vmm/storage/oci"
)

// openStore opens the user's images.
func openStore() (*oci.Store, error) {
	dir, err := oci.DefaultDir()
	if err != nil {
		return nil, err
	}
	return oci.Open(dir, oci.Limits{})
}

// imageJSON is an image as images --json prints it.
type imageJSON struct {
	Name    string      `json:"name"` // whole
	Digest  string      `json:"digest"`
	ID      string      `json:"id"` // digest of the configuration
	Created time.Time   `json:"created"`
	Size    int64       `json:"size"`   // bytes that all its layers take, packed and unpacked
	Shared  int64       `json:"shared"` // of these, what other images have too
	Layers  []layerJSON `json:"layers"`

	config *v1.ConfigFile
}

// layerJSON is a layer of imageJSON.
type layerJSON struct {
	Digest   string   `json:"digest"`   // of its archive, not compressed
	Packed   int64    `json:"packed"`   // bytes
	Unpacked int64    `json:"unpacked"` // bytes on the disk
	Images   []string `json:"images"`   // short names of all that have it
}

func imagesCommand() *cobra.Command {
	var tree, asJSON, quiet bool
	cmd := &cobra.Command{
		Use: "images [NAME...]", Short: "List container images",
		Long: "images lists the container images that vmm run --image can start: those that were pulled,\n" +
			"loaded or given another name. SHARED is what of SIZE other images have too. --tree shows the layers,\n" +
			"and who has each.",
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := listImages(args)
			if err != nil {
				return failed(err)
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				return printJSON(out, list)
			case quiet:
				for _, i := range list {
					fmt.Fprintln(out, shortHex(i.ID))
				}
			case tree:
				printImageTree(out, list)
			default:
				w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tID\tCREATED\tSIZE\tSHARED")
				for _, i := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", shownName(i.Name), shortHex(i.ID), age(i.Created), humanSize(i.Size), humanSize(i.Shared))
				}
				return w.Flush()
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&tree, "tree", false, "show the layers of each, and which images share them")
	fl.BoolVar(&asJSON, "json", false, "print JSON")
	fl.BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	return cmd
}

// listImages describes images: all, or those that are named.
func listImages(refs []string) ([]imageJSON, error) {
	store, err := openStore()
	if err != nil {
		return nil, err
	}
	all, err := store.List()
	if err != nil {
		return nil, err
	}
	users := map[v1.Hash][]*oci.Image{} // of layers
	for _, i := range all {
		for _, h := range i.Config.RootFS.DiffIDs {
			if !slices.Contains(users[h], i) {
				users[h] = append(users[h], i)
			}
		}
	}
	if len(refs) > 0 {
		all = nil
		for _, ref := range refs {
			i, err := store.Get(ref)
			if err != nil {
				return nil, err
			}
			all = append(all, i)
		}
	}
	out := []imageJSON{}
	for _, i := range all {
		described, err := describeImage(i, users)
		if err != nil {
			return nil, err
		}
		out = append(out, described)
	}
	return out, nil
}

// describeImage describes an image. users are the images that have each layer, one for each name.
func describeImage(i *oci.Image, users map[v1.Hash][]*oci.Image) (imageJSON, error) {
	out := imageJSON{Name: i.Name, Digest: i.Digest.String(), ID: i.ID().String(), Created: i.Created(), Layers: []layerJSON{}, config: i.Config}
	layers, err := i.Layers()
	if err != nil {
		return out, err
	}
	counted := map[v1.Hash]bool{}
	for _, l := range layers {
		described := layerJSON{Digest: l.Digest.String(), Packed: l.Packed, Unpacked: l.Unpacked}
		shared := false
		for _, user := range users[l.Digest] {
			described.Images = append(described.Images, oci.ShortName(user.Name))
			shared = shared || user.Digest != i.Digest
		}
		out.Layers = append(out.Layers, described)
		if counted[l.Digest] {
			continue
		}
		counted[l.Digest] = true
		out.Size += l.Packed + l.Unpacked
		if shared {
			out.Shared += l.Packed + l.Unpacked
		}
	}
	return out, nil
}

// printImageTree prints images with their layers, from the lowest up.
func printImageTree(w io.Writer, list []imageJSON) {
	for _, i := range list {
		name := oci.ShortName(i.Name)
		fmt.Fprintf(w, "%s  %s, own %s, shared %s\n", shownName(i.Name), shortHex(i.ID), humanSize(i.Size-i.Shared), humanSize(i.Shared))
		for n, l := range i.Layers {
			branch := "├─"
			if n == len(i.Layers)-1 {
				branch = "└─"
			}
			others := slices.DeleteFunc(slices.Clone(l.Images), func(o string) bool { return o == name })
			with := ""
			if len(others) > 0 {
				with = "  also in " + visible.Text(strings.Join(others, ", "))
			}
			fmt.Fprintf(w, "%s %s  %s%s\n", branch, shortHex(l.Digest), humanSize(l.Packed+l.Unpacked), with)
		}
	}
}

// shownName is how a whole name is shown; an image may have none.
func shownName(whole string) string {
	if whole == "" {
		return "<none>"
	}
	return visible.Text(oci.ShortName(whole))
}

// shortHex is the beginning of a digest.
func shortHex(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(shortDigest, len(hex))]
}

// age is how long ago something was, as people say it.
func age(t time.Time) string {
	if t.Unix() <= 0 { // what was made so that it is the same each time says no time
		return "unknown"
	}
	const day = 24 * time.Hour
	d := time.Since(t)
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{365 * day, "years"}, {day, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if d >= 2*u.unit {
			return fmt.Sprintf("%d %s ago", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d seconds ago", max(0, d/time.Second))
}

func historyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "history IMAGE", Short: "Show how a container image was made", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			i, err := getImage(args[0])
			if err != nil {
				return failed(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), i.Config.History)
			}
			layers, err := i.Layers()
			if err != nil {
				return failed(err)
			}
			sizes := historySizes(i.Config.History, layers)
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "CREATED\tSIZE\tMADE BY")
			for n, h := range slices.Backward(i.Config.History) {
				by := h.CreatedBy
				if by == "" {
					by = h.Comment
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", age(h.Created.Time), humanSize(sizes[n]), visible.Text(strings.Join(strings.Fields(by), " ")))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// historySizes are the sizes of the layers that steps have made, 0 for one that made none.
func historySizes(history []v1.History, layers []oci.Layer) []int64 {
	sizes, next := make([]int64, len(history)), 0
	for n, h := range history {
		if !h.EmptyLayer && next < len(layers) {
			sizes[n] = layers[next].Unpacked
			next++
		}
	}
	return sizes
}

func inspectImageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect-image IMAGE...", Short: "Print what container images are configured to, as JSON", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := listImages(args)
			if err != nil {
				return failed(err)
			}
			var out []any
			for _, i := range list {
				out = append(out, struct {
					imageJSON
					Config *v1.ConfigFile `json:"config"`
				}{i, i.config})
			}
			return printJSON(cmd.OutOrStdout(), out)
		},
	}
}

// getImage is an image of the user's.
func getImage(ref string) (*oci.Image, error) {
	store, err := openStore()
	if err != nil {
		return nil, err
	}
	return store.Get(ref)
}

func tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give a container image another name", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			return failed(store.Tag(cmd.Context(), args[0], args[1]))
		},
	}
}

func rmiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove names of container images, and those that have none left", Args: cobra.MinimumNArgs(1),
		Long: "rmi removes a name, or with the beginning of a digest or of an ID all names of that image. What\n" +
			"no image needs any more goes too. VMs that run keep what they have.",
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			for _, ref := range args {
				removed, e := store.Remove(cmd.Context(), ref)
				for _, name := range removed.Names {
					fmt.Fprintln(cmd.OutOrStdout(), "untagged:", visible.Text(oci.ShortName(name)))
				}
				if removed.Digest != "" {
					fmt.Fprintln(cmd.OutOrStdout(), "removed:", removed.Digest)
				}
				err = errors.Join(err, e)
			}
			_, e := store.Tidy(cmd.Context())
			return failed(errors.Join(err, e))
		},
	}
}

func pruneCommand() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what no container image needs", Args: cobra.NoArgs,
		Long: "prune removes what is left of images that were pulled anew or interrupted. With --all the images go too.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			if all {
				if !force {
					return &exitError{statusUsage, errors.New("prune --all removes every image: add --force")}
				}
				if err := removeAll(cmd, store); err != nil {
					return failed(err)
				}
			}
			freed, err := store.Prune(cmd.Context())
			if err != nil {
				return failed(err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "freed:", humanSize(freed))
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "remove all images")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do that without being asked")
	return cmd
}

// removeAll removes every image.
func removeAll(cmd *cobra.Command, store *oci.Store) error {
	list, err := store.List()
	if err != nil {
		return err
	}
	digests := map[string]bool{}
	for _, i := range list {
		digests[i.Digest.String()] = true
	}
	for _, d := range slices.Sorted(maps.Keys(digests)) {
		if _, err := store.Remove(cmd.Context(), d); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), "removed:", d)
	}
	return nil
}

// openArchiveOf opens what load reads: a file, a directory, or "-" for standard input.
func openArchiveOf(path string) (*os.File, error) {
	if path == "-" {
		return os.Stdin, nil
	}
	return os.Open(path)
}
