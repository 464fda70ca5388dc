// Package guestinit is the init of vmm's default guest. It mounts what a
// Linux system expects, runs /etc/rc.local if there is one, and a login shell
// on the console; when the shell ends, the guest shuts down. It obeys the
// power button and busybox's poweroff, halt and reboot.
package guestinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmm/guest-images/agent"
)

// HostnameArg is the kernel argument that names the guest.
const HostnameArg = "vmm.hostname="

// How long processes have between SIGTERM and SIGKILL.
const grace = 2 * time.Second

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	moves                  bool // to another root; what is below goes with it
	scratch                bool // of the default guest's, where a container image has files of its own
}

var mounts = []mount{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", true, false},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", true, false},
	{"dev", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", true, false},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666", false, false},
	{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "", false, false},
	{"tmp", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "", true, true},
	{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", true, true},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false, false},
}

// deviceLinks are names in /dev that devtmpfs does not have and programs take for granted:
// shells open /dev/fd/N for <(command).
var deviceLinks = map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}

// Main is PID 1 of the guest, or the agent beside an image's init, if it is called AgentName. It does not return.
func Main() {
	if os.Args[0] == AgentName {
		beside()
	}
	os.Setenv("PATH", agent.Path)
	os.Setenv("HOME", "/root")
	if os.Getenv("TERM") == "" || os.Getenv("TERM") == "linux" {
		os.Setenv("TERM", "vt100")
	}
	for _, m := range mounts {
		os.MkdirAll(m.target, 0o755)
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			warn("mount %s: %v", m.target, err) // a kernel may lack one; the rest still serves
		}
	}
	for name, target := range deviceLinks {
		os.Symlink(target, "/dev/"+name)
	}
	reaper = agent.NewReaper()
	setHostname()
	ends := make(chan int, 4)
	cfg, err := readConfig(ConfigPath)
	if err == nil {
		err = prepare(cfg, ends)
	}
	if err != nil {
		warn("%v", err)
		if cfg.AgentOnly {
			ends <- unix.LINUX_REBOOT_CMD_POWER_OFF
		}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGINT)
	go func() { ends <- rebootCommand(<-signals) }()
	go watchPowerButton(func() { ends <- unix.LINUX_REBOOT_CMD_POWER_OFF })
	if !cfg.AgentOnly {
		go func() {
			session(false, "/etc/rc.local")
			session(true, "/bin/sh", "-l")
			ends <- unix.LINUX_REBOOT_CMD_POWER_OFF
		}()
	}
	shutDown(<-ends)
}

// reaper waits for orphans; Main makes it.
var reaper *agent.Reaper

// prepare does what the configuration says and starts the agent.
func prepare(cfg *Config, ends chan<- int) error {
	if err := loadModules(cfg.Modules); err != nil {
		return err
	}
	if cfg.Volumes {
		if err := findVolumes(); err != nil {
			warn("%v", err) // what is not on them can be read all the same
		}
	}
	if cfg.Root != nil && cfg.Root.Boot {
		return bootRoot(cfg)
	}
	if cfg.Root.handsOver() {
		if err := mountRoot(cfg); err != nil {
			return err
		}
		return handOver(cfg)
	}
	connect(cfg)
	if err := mountRoot(cfg); err != nil {
		return err
	}
	if cfg.NoAgent {
		return nil
	}
	server := newServer(cfg, func(reboot bool) {
		command := unix.LINUX_REBOOT_CMD_POWER_OFF
		if reboot {
			command = unix.LINUX_REBOOT_CMD_RESTART
		}
		ends <- command
	})
	if cfg.WaitNetwork && !cfg.AgentOnly {
		server.Ready = sync.OnceFunc(waitNetwork) // the host need not wait for it to see that the guest is up
	}
	go func() {
		if cfg.WaitNetwork && cfg.AgentOnly {
			waitNetwork()
		}
		// A guest that has no vsock is none that the host wants to reach, unless it
		// says so.
		if err := server.Run(); err != nil && cfg.AgentOnly {
			warn("%v", err)
			ends <- unix.LINUX_REBOOT_CMD_POWER_OFF
		}
	}()
	return nil
}

// connect makes the guest's ports and networks work, without waiting for them.
func connect(cfg *Config) {
	linkPorts()
	if len(cfg.Modules) > 0 {
		go awaitPorts()
	}
	startNetwork(cfg.Addresses)
}

// mountRoot makes the guest's root, and mounts the host's directories in it.
func mountRoot(cfg *Config) error {
	if cfg.Root != nil {
		if err := enterRoot(cfg.Root); err != nil {
			return err
		}
	}
	if err := mountAll(cfg.Mounts); err != nil {
		return err
	}
	return protectRoot()
}

// newServer makes the agent.
func newServer(cfg *Config, shutdown func(reboot bool)) *agent.Server {
	return &agent.Server{Start: reaper.Start, Finished: reaper.Finished, Shutdown: shutdown, Setup: setup,
		Container: container(cfg), Upper: upper(cfg.Root), Alone: true}
}

// setup is what a restored guest's init has to do: its network may have other
// hardware addresses, its root may have changed, and there may be directories to mount.
func setup(s *agent.Setup) error {
	if len(s.MACs) > 0 {
		askDHCP()
	} else if s.Renew {
		renewDHCP()
	}
	if s.Config == nil {
		return nil
	}
	var c Config
	if err := json.Unmarshal(s.Config, &c); err != nil {
		return err
	}
	if c.Root != nil {
		if err := renewRoot(c.Root); err != nil {
			return fmt.Errorf("mounting the root anew: %w", err)
		}
	}
	for _, dir := range c.Refresh {
		var st unix.Statx_t // what is hidden by a mount is not seen, and does not count
		unix.Statx(unix.AT_FDCWD, "/"+dir, unix.AT_STATX_FORCE_SYNC|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	}
	if err := allowRoot(); err != nil { // where directories are to be mounted
		return err
	}
	return errors.Join(mountAll(c.Mounts), protectRoot())
}

func warn(format string, args ...any) { fmt.Fprintf(os.Stderr, "init: "+format+"\n", args...) }

// rebootCommand translates the signals that busybox sends to PID 1.
func rebootCommand(s os.Signal) int {
	if s == unix.SIGTERM || s == unix.SIGINT {
		return unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.LINUX_REBOOT_CMD_POWER_OFF
}

// setHostname takes the name from the kernel's arguments.
func setHostname() {
	name := "vmm"
	args, _ := os.ReadFile("/proc/cmdline")
	for _, a := range strings.Fields(string(args)) {
		if v, ok := strings.CutPrefix(a, HostnameArg); ok && v != "" {
			name = v
		}
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		warn("hostname %q: %v", name, err)
	}
}

// portPatience is how long a console's driver may take, once it is loaded, to find its
// ports.
const portPatience = time.Second

// awaitPorts links ports that a driver finds in its own time.
func awaitPorts() {
	for end := time.Now().Add(portPatience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		linkPorts()
	}
}

// linkPorts makes the names of virtio console ports, as udev does.
func linkPorts() {
	const class = "/sys/class/virtio-ports/"
	ports, _ := os.ReadDir(class)
	for _, p := range ports {
		name, err := os.ReadFile(class + p.Name() + "/name")
		if err != nil || len(name) == 0 {
			continue // the console has none
		}
		os.MkdirAll("/dev/virtio-ports", 0o755)
		os.Symlink("../"+p.Name(), "/dev/virtio-ports/"+filepath.Base(strings.TrimSpace(string(name))))
	}
}

// session runs a program on the console and waits for it. A program that is not
// there is left out. With login, the console is its controlling terminal, which
// the kernel clears of what was typed ahead when the program ends.
func session(login bool, name string, args ...string) {
	if _, err := os.Stat(name); err != nil {
		return
	}
	console, err := openConsole()
	if err != nil {
		warn("no console: %v", err)
		return
	}
	defer console.Close()
	c := exec.Command(name, args...)
	c.Dir = "/root"
	c.Stdin, c.Stdout, c.Stderr = console, console, console
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: login}
	if err := reaper.Start(c); err != nil {
		warn("%s: %v", name, err)
		return
	}
	c.Wait()
	reaper.Finished(c)
}

// openConsole opens the terminal behind /dev/console, which itself cannot be
// a controlling one, and gives it the size that the host's has.
func openConsole() (*os.File, error) {
	f, err := os.OpenFile(consolePath(), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	rows, _ := strconv.ParseUint(os.Getenv("LINES"), 10, 16)
	cols, _ := strconv.ParseUint(os.Getenv("COLUMNS"), 10, 16)
	if rows > 0 && cols > 0 {
		unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(cols)})
	}
	return f, nil
}

// consolePath is the terminal behind /dev/console, once there is one: its driver may
// be a module.
func consolePath() string {
	for end := time.Now().Add(portPatience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		active, err := os.ReadFile("/sys/class/tty/console/active")
		if err != nil {
			break
		}
		if names := strings.Fields(string(active)); len(names) > 0 {
			return "/dev/" + names[len(names)-1]
		}
	}
	return "/dev/console"
}

// shutDown ends all processes, saves what is unsaved and reboots or powers
// off.
func shutDown(command int) {
	unix.Kill(-1, unix.SIGTERM)
	unix.Kill(-1, unix.SIGHUP) // for shells that somebody uses
	deadline := time.Now().Add(grace)
	for time.Now().Before(deadline) {
		var status unix.WaitStatus
		if _, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	err := unix.Reboot(command)
	warn("reboot: %v", err)
	select {} // PID 1 must not end
}
