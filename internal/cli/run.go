package cli

import "github.com/spf13/cobra"

func runCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [COMMAND [ARGUMENT...]]",
		Short: "Boot a virtual machine, or run a command in one",
		Long: "run boots a Linux kernel and connects this terminal to its serial console.\n" +
			"Without --kernel it boots what the first --disk would boot, and without that the default\n" +
			"guest: with the kernel that vmm setup builds if it has, else with Debian's own.\n\n" +
			"With a command, it runs that in the guest, with this process's standard output and error, with\n" +
			"-i its standard input too, and ends with its exit status. The guest's root is then what this host has, and the current\n" +
			"directory is the same; what the guest writes is gone with it (see --rw).\n\n" +
			"Ctrl-a x ends the VM, Ctrl-a h shows the other keys.\n\n" +
			"Exit status: the command's, or 0 the guest shut down or rebooted, 123 it crashed,\n" +
			"124 --timeout, 125 vmm could not start or failed, 2 wrong usage.",
		Example: "  vmm run\n" +
			"  vmm run -- make check\n" +
			"  vmm run --image debian:12 -- cat /etc/os-release\n" +
			"  vmm run -it\n" +
			"  vmm run --kernel /boot/vmlinuz-$(uname -r) --modules /lib/modules/$(uname -r)\n" +
			"  vmm run --kernel arch/x86/boot/bzImage --append 'loglevel=7' -m 2G -c 4\n" +
			"  vmm run --kernel vmlinuz --initrd initrd.img --console boot.log --timeout 5m",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := f.session(cmd.Context(), args)
			if err != nil {
				return err
			}
			return s.start(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f.add(cmd.Flags())
	return cmd
}
