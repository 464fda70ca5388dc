package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	guestimages "vmm/guest-images"
)

// setupBuilder returns a builder that shows on standard error what it does;
// finish ends its progress bar.
func setupBuilder() (b *guestimages.Builder, finish func()) {
	bar := newProgress("")
	show := func(step string, done, total int) {
		if step != bar.what {
			bar.end()
			bar = newProgress(step)
			bar.lines = true
		}
		bar.show(int64(done), int64(total))
	}
	return &guestimages.Builder{Log: os.Stderr, Progress: show}, func() { bar.end() }
}

func setupCommand() *cobra.Command {
	var stock bool
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make the default guest's own kernel",
		Long: "setup builds the default guest's kernel from Debian's kernel source, which takes minutes, and\n" +
			"fetches its busybox. What is there already is left alone. Until then, vmm run boots Debian's\n" +
			"own kernel, which it fetches itself: it is larger, and takes longer to boot.\n" +
			"As root it installs the compilers that are missing; else it says which.",
		Example: "  vmm setup\n  vmm setup --stock   # Debian's own cloud kernel too",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, finish := setupBuilder()
			defer finish()
			slim, err := b.SlimKernel(cmd.Context())
			if err == nil {
				_, err = b.Initramfs(cmd.Context())
			}
			if err != nil {
				return failed(err)
			}
			finish()
			fmt.Println(slim.Image)
			if stock {
				k, err := b.StockKernel(cmd.Context())
				if err != nil {
					return failed(err)
				}
				fmt.Println(k.Image)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&stock, "stock", false, "also fetch Debian's stock cloud kernel")
	return cmd
}
