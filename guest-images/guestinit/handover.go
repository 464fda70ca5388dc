package guestinit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
)

// Where a container image has an init of its own, vmm's init makes the root, starts itself once
// more as the agent, and becomes the image's init.

// AgentName is the name of the agent's process there. systemd, when it shuts down, leaves those alone
// whose name begins with @ (systemd.io, "systemd and Storage Daemons for the Root File System").
const AgentName = "@vmm-agent"

// Descriptors of the agent's process.
const (
	agentRoot = 3 // the initial RAM disk
	agentLink = 4 // to PID 1: see handOver
)

// handsOver reports whether the guest is handed over to an init of its image's.
func (r *Root) handsOver() bool { return r != nil && r.Image != nil && r.Image.Init != nil }

// renews reports whether the root gets a file system of this kind anew: an init takes it for granted
// that nothing is in /run.
func (r *Root) renews(m *mount) bool { return m.target == "/run" && r.handsOver() }

// handOver makes PID 1 the init of the image that is the root. It returns only if it cannot.
func handOver(cfg *Config) error {
	image, own := cfg.Root.Image, os.Environ()
	for _, v := range image.Defaults.Env {
		// Images for systemd in containers say so by a variable, and this is a machine.
		if name, value, ok := strings.Cut(v, "="); ok && name != "container" {
			os.Setenv(name, value)
		}
	}
	path, argv, err := image.Init.find()
	if err != nil {
		return err
	}
	beside, link, err := startAgent(own)
	if err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	if n, err := link.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("the agent has ended: %w", err)
	}
	if console, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		for fd := range 3 { // they may lead nowhere, from before there was a console
			unix.Dup2(int(console.Fd()), fd)
		}
	}
	err = unix.Exec(path, argv, os.Environ())
	beside.Process.Kill() // before it sees the end of the link, and says hello
	return fmt.Errorf("the image's init %s: %w", path, err)
}

// find returns the path of the init, and its arguments.
func (i *Init) find() (path string, argv []string, err error) {
	if argv = i.Argv; len(argv) > 0 {
		if path, err = exec.LookPath(argv[0]); err != nil {
			err = fmt.Errorf("the image has no such init: %w", err)
		}
		return path, argv, err
	}
	for _, path := range InitPrograms {
		if _, err := exec.LookPath(path); err == nil {
			return path, []string{path}, nil
		}
	}
	return "", nil, fmt.Errorf("the image has no init of its own: there is neither %s in it", strings.Join(InitPrograms, " nor "))
}

// startAgent starts the agent beside PID 1, with an environment. On the link comes a byte from it when the network is there; the
// link's end tells it that the image's init has begun.
func startAgent(env []string) (*exec.Cmd, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "link"), os.NewFile(uintptr(pair[1]), "link")
	defer theirs.Close()
	ram := os.NewFile(uintptr(oldRoot), "the initial RAM disk")
	c := &exec.Cmd{Path: "/proc/self/exe", Args: []string{AgentName}, Env: env, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: []*os.File{ram, theirs}, SysProcAttr: &unix.SysProcAttr{Setsid: true}}
	return c, ours, reaper.Start(c)
}

// beside is the agent's process. It does not return.
func beside() {
	// An init that ends all processes ends itself next, and a command may be about to tell that it has it do so.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGHUP)
	for _, fd := range []int{agentRoot, agentLink} {
		unix.CloseOnExec(fd)
	}
	oldRoot = agentRoot
	err := serveBeside(os.NewFile(agentLink, "link"))
	warn("the agent: %v", err)
	os.Exit(1)
}

// serveBeside connects the guest, and serves the host once PID 1 is the image's init.
func serveBeside(link *os.File) (err error) {
	ram := fmt.Sprintf("/proc/self/fd/%d", agentRoot)
	cfg, err := readConfig(ram + ConfigPath)
	if err != nil {
		return err
	}
	if openedWorkDir, err = unix.Open(ram+workDir, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", workDir, err)
	}
	reaper = agent.NewReaper()
	connect(cfg)
	if cfg.WaitNetwork {
		waitNetwork()
	}
	if _, err := link.Write([]byte{0}); err != nil {
		return err
	}
	io.Copy(io.Discard, link)
	return newServer(cfg, agent.ShutDown).Run()
}

// complete makes in a root what an init needs of it.
func (*Init) complete(root *os.Root) error {
	if err := giveMachineID(root); err != nil {
		return fmt.Errorf("%s: %w", machineID, err)
	}
	return consoleWithoutUdev(root)
}

// machineID is the file that tells machines apart (machine-id(5)), below the root.
const machineID = "etc/machine-id"

// giveMachineID gives a guest an identity if its image has none. systemd would take the start for the first
// one of an installation, and enable services and ask for a password on the console.
func giveMachineID(root *os.Root) error {
	b, err := root.ReadFile(machineID)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" && id != "uninitialized" {
		return nil
	}
	if err := root.Remove(machineID); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be a link
		return err
	}
	id := make([]byte, 16)
	if _, err := unix.Getrandom(id, 0); err != nil { // not crypto/rand: its generator is a twentieth of this program
		return err
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // as a random UUID
	return root.WriteFile(machineID, []byte(hex.EncodeToString(id)+"\n"), 0o444)
}

// consoleWithoutUdev has systemd offer a login on the console where it would wait for its device in vain: only
// udev tells it of devices, which images rarely have.
func consoleWithoutUdev(root *os.Root) error {
	const (
		units     = "usr/lib/systemd/"
		login     = "system/console-getty.service"
		generator = "system-generators/systemd-getty-generator"
		runtime   = "run/systemd/"
		wants     = runtime + "system/getty.target.wants/"
	)
	has := func(name string) bool {
		_, err := root.Lstat(units + name)
		return err == nil
	}
	if has("systemd-udevd") || !has(login) || !has(generator) {
		return nil
	}
	for link, target := range map[string]string{
		runtime + generator:             "/dev/null", // is how one is left out (systemd.generator(7))
		wants + "console-getty.service": "/" + units + login,
	} {
		err := root.MkdirAll(link[:strings.LastIndexByte(link, '/')], 0o755)
		if err == nil {
			err = root.Symlink(target, link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
