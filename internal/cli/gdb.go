package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	guestimages "vmm/guest-images"
	"vmm/internal/tcpowner"
	"vmm/internal/unixsocket"
	"vmm/internal/visible"
	"vmm/vm"
	"vmm/vm/api"
)

const gdbUsage = "let gdb debug the guest's kernel at `ADDRESS`: PORT, HOST:PORT or unix:PATH; with ,wait the guest begins when gdb says so"

// gdbListener is where gdb connects (--gdb).
type gdbListener struct {
	l      net.Listener
	owners *tcpowner.Table // of a TCP port; nil for a unix socket
	uid    uint32          // whose it is
	wait   bool
}

// listenGDB opens what --gdb names; nil if that is nothing.
func listenGDB(spec string) (*gdbListener, error) {
	if spec == "" {
		return nil, nil
	}
	addr, wait := strings.CutSuffix(spec, ",wait")
	g := &gdbListener{wait: wait, uid: uint32(os.Getuid())}
	var err error
	if path, isUnix := strings.CutPrefix(addr, "unix:"); isUnix {
		g.l, err = unixsocket.Listen(path)
	} else {
		if !strings.Contains(addr, ":") {
			addr = ":" + addr
		}
		if strings.HasPrefix(addr, ":") { // who debugs can do all: not from elsewhere by default
			addr = "127.0.0.1" + addr
		}
		if g.l, err = net.Listen("tcp", addr); err == nil {
			if g.owners, err = tcpowner.Open(); err != nil {
				err = errors.Join(fmt.Errorf("who connects cannot be known: %w", err), g.l.Close())
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("--gdb: %w", err)
	}
	return g, nil
}

// refuses returns why a connection is refused: gdb has no password, so on this host only
// this user and root may be its other end. What comes from another host was let in by an
// address that the user has given.
func (g *gdbListener) refuses(c net.Conn) error {
	if g.owners == nil || !c.RemoteAddr().(*net.TCPAddr).IP.IsLoopback() {
		return nil
	}
	switch uid, err := g.owners.Owner(c); {
	case err != nil:
		return err
	case uid != g.uid && uid != 0:
		return fmt.Errorf("a connection of user %d was refused", uid)
	}
	return nil
}

// serve lets one gdb after the other debug the machine, until close. With wait, the
// machine, which does not run yet, stands still until the first lets it go on.
func (g *gdbListener) serve(v *vm.VM, kill func(), out io.Writer) {
	if g == nil {
		return
	}
	if g.wait {
		v.HoldForDebugger()
		fmt.Fprintf(out, "vmm: waiting for gdb at %v\n", g.l.Addr())
	}
	go func() {
		for {
			c, err := g.l.Accept()
			if err != nil {
				return
			}
			if err = g.refuses(c); err == nil {
				err = v.ServeGDB(c, kill)
			}
			if err != nil {
				fmt.Fprintf(out, "vmm: gdb: %s\n", visible.Text(err.Error()))
			}
			c.Close()
		}
	}()
}

func (g *gdbListener) close() {
	if g != nil {
		g.l.Close()
		g.owners.Close()
	}
}

// gdbCommand is vmm gdb.
func gdbCommand() *cobra.Command {
	var symbols string
	var pipe bool
	cmd := &cobra.Command{
		Use: "gdb [flags] VM [GDB-ARGUMENT...]", Short: "Debug a running VM's kernel with gdb", Args: cobra.MinimumNArgs(1),
		Long: "gdb starts gdb, connected to the VM, which stands still until gdb lets it go on. The VM's CPUs\n" +
			"are gdb's threads. --symbols is the kernel's vmlinux; for the default guest's it is known.",
		Example: "  vmm gdb dev\n  vmm gdb --symbols ~/linux/vmlinux dev -ex 'hbreak do_exit' -ex continue",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(cmd.Context(), args[0])
			if err != nil {
				return failed(err)
			}
			if pipe {
				return failed(pipeGDB(cmd, vm))
			}
			return failed(startGDB(vm, symbols, args[1:]))
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.StringVar(&symbols, "symbols", "", "the kernel's vmlinux `FILE`")
	fl.BoolVar(&pipe, "pipe", false, "speak gdb's protocol on standard input and output, for gdb's \"target remote |\"")
	return cmd
}

// startGDB becomes gdb.
func startGDB(of api.VM, symbols string, args []string) error {
	path, err := exec.LookPath("gdb")
	if err != nil {
		return errors.New("gdb is not installed: apt-get install gdb")
	}
	if symbols == "" && of.Kernel == vm.DefaultKernel {
		symbols, _ = guestimages.SlimKernelELF()
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := []string{"gdb", "-q"}
	if symbols != "" {
		argv = append(argv, symbols)
	}
	argv = append(argv, "-ex", "set remotetimeout 30", // of a busy host; gdb's own is 2 s
		"-ex", fmt.Sprintf("target remote | '%s' gdb --pipe %s", self, of.Name))
	return unix.Exec(path, append(argv, args...), os.Environ())
}

// pipeGDB joins standard input and output with the VM. The key that interrupts gdb
// is not for this process: gdb passes it on in the stream.
func pipeGDB(cmd *cobra.Command, vm api.VM) error {
	takeSignals(cmd.Context())
	signal.Ignore(unix.SIGINT)
	conn, err := ask(vm).DialGDB(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.Close()
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, os.Stdin)
		time.Sleep(100 * time.Millisecond) // for what is under way
		done <- err
	}()
	go func() {
		_, err := io.Copy(os.Stdout, conn)
		done <- err
	}()
	return <-done
}
