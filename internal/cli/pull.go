package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vmm/internal/output"
	"vmm/internal/room"
	"vmm/internal/visible"
	"vmm/storage/oci"
)

// registryFlags are those of commands that speak with registries.
type registryFlags struct{ oci.Registry }

func (f *registryFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.Insecure, "insecure", false, "allow a registry without HTTPS, or whose certificate no known authority has signed")
}

func pullCommand() *cobra.Command {
	var registry registryFlags
	var quiet bool
	cmd := &cobra.Command{
		Use: "pull IMAGE...", Short: "Fetch container images from a registry", Args: cobra.MinimumNArgs(1),
		Long: "pull fetches images for this kind of machine. \"debian:12\" means what it means to docker. What had\n" +
			"come of a pull that was interrupted does not come again, and layers that are here do not come at all.\n" +
			"Passwords and helpers are those of docker's configuration (see vmm login).",
		Example: "  vmm pull debian:12\n  vmm run --image debian:12 -- cat /etc/os-release",
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			for _, ref := range args {
				i, err := pullImage(cmd.Context(), store, ref, registry.Registry, quiet)
				if err != nil {
					return failed(err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", visible.Text(oci.ShortName(i.Name)), i.Digest)
			}
			return nil
		},
	}
	registry.add(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// pullImage fetches an image and shows how far that is.
func pullImage(ctx context.Context, store *oci.Store, ref string, registry oci.Registry, quiet bool) (*oci.Image, error) {
	if quiet {
		return store.Pull(ctx, ref, registry, nil)
	}
	p := newLayersProgress(os.Stderr)
	defer p.end()
	return store.Pull(ctx, ref, registry, p.show)
}

func pushCommand() *cobra.Command {
	var registry registryFlags
	cmd := &cobra.Command{
		Use: "push IMAGE", Short: "Send a container image to the registry that its name names", Args: cobra.ExactArgs(1),
		Example: "  vmm tag debian:12 registry.example/team/base:1\n  vmm push registry.example/team/base:1",
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			p := newProgress(args[0])
			defer p.end()
			digest, err := store.Push(cmd.Context(), args[0], registry.Registry, p.show)
			if err != nil {
				return failed(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", args[0], digest)
			return nil
		},
	}
	registry.add(cmd)
	return cmd
}

func loadCommand() *cobra.Command {
	var input, name string
	cmd := &cobra.Command{
		Use: "load [-i FILE]", Short: "Take container images from an archive or a directory", Args: cobra.NoArgs,
		Long: "load takes the images of an archive as docker save, podman save, skopeo and vmm save write it,\n" +
			"compressed or not, or of a directory that is an OCI image layout.",
		Example: "  docker save app:1 | vmm load\n  vmm load -i layout-directory --name app:1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if input == "-" && term.IsTerminal(int(os.Stdin.Fd())) {
				return &exitError{statusUsage, errors.New("load: give -i FILE, or the archive on standard input")}
			}
			f, err := openArchiveOf(input)
			if err != nil {
				return failed(err)
			}
			defer f.Close()
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			images, err := store.Load(cmd.Context(), f, name, nil)
			for _, i := range images {
				fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", visible.Text(oci.ShortName(i.Name)), i.Digest)
			}
			return failed(err)
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "-", "`FILE` or directory, - for standard input")
	cmd.Flags().StringVar(&name, "name", "", "`NAME` for the image, if there is one only")
	return cmd
}

func saveCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "save [-o FILE] IMAGE...", Short: "Write container images to an archive", Args: cobra.MinimumNArgs(1),
		Long:    "save writes an archive that docker load, podman load and skopeo (oci-archive:, docker-archive:) read.",
		Example: "  vmm save debian:12 | docker load",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			store, err := openStore()
			if err != nil {
				return failed(err)
			}
			for _, ref := range args { // before a file is made
				if _, err := store.Get(ref); err != nil {
					return failed(err)
				}
			}
			return writeArchive("save", to, nil, func(w io.Writer) error { return store.Save(cmd.Context(), w, args) })
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", "-", "`FILE`, - for standard output")
	return cmd
}

// writeArchive has a command write an archive to a file, or with "-" to standard output. Of one
// that was not written whole no file is left, and some room stays free. guest are directories that a guest can write to.
func writeArchive(command, to string, guest []string, write func(io.Writer) error) error {
	if to == stdStream {
		if term.IsTerminal(int(os.Stdout.Fd())) {
			return usage("%s: give -o FILE, or send it to another command: an archive is nothing for a terminal", command)
		}
		return failed(write(os.Stdout))
	}
	f, err := output.Create(to, output.Private, guest)
	if err != nil {
		return failed(err)
	}
	var out io.Writer = f
	if f.Regular() {
		out = room.Writer{File: f.File}
	}
	if err := write(out); err != nil {
		return failed(errors.Join(err, f.Abandon()))
	}
	return failed(f.Close())
}

func loginCommand() *cobra.Command {
	var registry registryFlags
	var user string
	var stdin bool
	cmd := &cobra.Command{
		Use: "login [REGISTRY]", Short: "Keep a password for a registry", Args: cobra.MaximumNArgs(1),
		Long: "login checks a user name and a password with a registry, docker's if none is given, and keeps them\n" +
			"where docker keeps its own: in ~/.docker/config.json, or with the helper that is named there.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if user == "" {
				if stdin || !term.IsTerminal(int(os.Stdin.Fd())) {
					return &exitError{statusUsage, errors.New("login: give --username NAME")}
				}
				fmt.Fprint(os.Stderr, "user name: ")
				if _, err := fmt.Scanln(&user); err != nil {
					return failed(fmt.Errorf("login: no user name: %w", err))
				}
			}
			password, err := readPassword(stdin)
			if err != nil {
				return failed(err)
			}
			if err := oci.Login(cmd.Context(), firstOr(args, ""), user, password, registry.Registry); err != nil {
				return failed(err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "logged in")
			return nil
		},
	}
	registry.add(cmd)
	cmd.Flags().StringVarP(&user, "username", "u", "", "`NAME` of the user")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "take the password from standard input")
	return cmd
}

// firstOr is the first of a list, or something else if there is none.
func firstOr(list []string, other string) string {
	if len(list) == 0 {
		return other
	}
	return list[0]
}

// readPassword asks for a password, which is not shown, or reads it from standard input.
func readPassword(stdin bool) (string, error) {
	if stdin {
		const most = 64 << 10
		b, err := io.ReadAll(io.LimitReader(os.Stdin, most))
		return strings.TrimRight(string(b), "\r\n"), err
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", errors.New("there is no terminal to ask for the password: --password-stdin takes it from standard input")
	}
	fmt.Fprint(os.Stderr, "password: ")
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	return string(b), err
}

func logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout [REGISTRY]", Short: "Forget the password for a registry", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			known, err := oci.Logout(firstOr(args, ""), oci.Registry{})
			if err != nil {
				return failed(err)
			}
			if !known {
				return failed(fmt.Errorf("there is no password for %s", firstOr(args, "docker.io")))
			}
			fmt.Fprintln(cmd.OutOrStdout(), "logged out")
			return nil
		},
	}
}
