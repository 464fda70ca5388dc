package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmm/internal/version"
	"vmm/machine/migration"
	"vmm/vm/api"
)

// defaultDowntime is how long a guest that moves may stand still.
const defaultDowntime = 300 * time.Millisecond

// dialTime bounds connecting to the other side.
const dialTime = 20 * time.Second

func migrateCommand() *cobra.Command {
	var req api.MigrateRequest
	cmd := &cobra.Command{
		Use: "migrate [flags] VM ADDRESS", Short: "Move a running VM to a vmm receive, here or on another host", Args: cobra.ExactArgs(2),
		Long: "migrate moves a VM while it runs: its memory is sent again and again until little is left to\n" +
			"send, and only then it stands still for a moment. Its disks and shared directories must be there,\n" +
			"by the same paths, at the other side. If anything fails, or on Ctrl-C, it goes on here.\n\n" +
			"ADDRESS is tcp://HOST:PORT, with the --key that vmm receive has printed, or unix:PATH.",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := findRunning(args[0])
			if err != nil {
				return failed(err)
			}
			if req.Key == "" {
				req.Key = os.Getenv(keyEnv)
			}
			network, path, err := splitAddress(args[1])
			if err != nil {
				return &exitError{statusUsage, err}
			}
			if req.Address = args[1]; network == "unix" {
				if path, err = filepath.Abs(path); err != nil {
					return failed(err)
				}
				req.Address = "unix:" + path
			} else if req.Key == "" {
				return &exitError{statusUsage, errors.New("migrate: over TCP the --key is needed that vmm receive has printed")}
			}
			bar := newGauge("moving")
			result, err := ask(vm).Migrate(cmd.Context(), req, bar.progress)
			bar.end()
			if err != nil {
				return failed(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has moved: %d MiB in %d rounds, it stood still for %v\n",
				vm.Name, result.Sent>>20, result.Rounds, result.Downtime.Round(time.Millisecond))
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&req.Key, "key", "", "the `KEY` that vmm receive has printed; or the environment variable "+keyEnv)
	fl.DurationVar(&req.Downtime, "downtime", defaultDowntime, "how long the guest may stand still: `DURATION`")
	return cmd
}

// keyEnv is where a key need not be seen in a list of processes.
const keyEnv = "VMM_KEY"

// splitAddress reads tcp://HOST:PORT or unix:PATH.
func splitAddress(s string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok && path != "" {
		return "unix", path, nil
	}
	if addr, ok := strings.CutPrefix(s, "tcp://"); ok {
		if _, _, err := net.SplitHostPort(addr); err == nil {
			return "tcp", addr, nil
		}
	}
	return "", "", fmt.Errorf("address %q: tcp://HOST:PORT or unix:PATH", s)
}

// migrate moves the VM.
func (s *saver) migrate(ctx context.Context, req *api.MigrateRequest, progress func(sent int64, round int)) (*migration.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts.space.holds() {
		return nil, api.ErrNoRoom
	}
	for _, d := range s.parts.disks.disks {
		if d.temporary() {
			return nil, fmt.Errorf("what the guest writes to the disk %s is in a file without a name, which cannot move", d.image.File.Name())
		}
	}
	hello := migration.Hello{VMM: version.String(), Memory: uint64(s.flags.memory), CPUs: s.flags.cpus, Name: s.flags.name}
	conn, err := dialPeer(ctx, req, &hello)
	if err != nil {
		return nil, err
	}
	disks := s.parts.disks
	s.base = "" // what was written since is told to the other side
	result, err := migration.Send(ctx, conn, s.machine, migration.Options{
		Hello: hello, Downtime: req.Downtime, Progress: progress, Release: disks.release, Reclaim: disks.reopen,
		Config: func() ([]byte, error) {
			vm := s.flags.describe(s.parts)
			for _, d := range disks.disks {
				vm.Disks = append(vm.Disks, d.moved())
			}
			return json.Marshal(vm)
		},
	})
	if errors.Is(err, migration.ErrUnknown) {
		s.pauseMu.Lock()
		defer s.pauseMu.Unlock()
		if s.released = true; s.paused {
			result.Resume() // the user's own pause is left
		} else {
			s.paused, s.resume = true, result.Resume
		}
		err = api.ErrMigrationUnknown.With("%v: look whether VM %q runs there; if it does, kill it here, else resume it: %v",
			migration.ErrUnknown, s.flags.name, err)
	}
	if err == nil {
		s.movedTo = req.Address
	}
	return result, err
}

// moved is the disk for another process, which opens the file itself.
func (d *vmDisk) moved() savedDisk {
	path, err := realPath(d.flag.path)
	if err != nil {
		path = d.flag.path
	}
	o := d.flag.image
	o.AnyBacking = true
	return savedDisk{Path: path, Options: o, Serial: d.flag.serial, Queues: d.flag.queues, Limit: d.flag.limit}
}

// dialPeer connects to a receiver. Over TCP, its certificate must be the one of the
// key, and it is told the key's secret.
func dialPeer(ctx context.Context, req *api.MigrateRequest, hello *migration.Hello) (net.Conn, error) {
	network, addr, err := splitAddress(req.Address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if network == "unix" {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	key, err := parseKey(req.Key)
	if err != nil {
		return nil, err
	}
	hello.Token = key.token()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // no authority has signed it: it is compared itself
		VerifyConnection: func(c tls.ConnectionState) error {
			print := fingerprint(c.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(print[:], key.print[:]) != 1 {
				return errors.New("the other side is not the vmm receive that the key is of")
			}
			return nil
		},
	}}
	return d.DialContext(ctx, network, addr)
}

// peerKey is what two sides of a migration know of each other: what proves the
// receiver, and what proves the source.
type peerKey struct {
	print, secret [16]byte
}

func fingerprint(certificate []byte) (p [16]byte) {
	sum := sha256.Sum256(certificate)
	copy(p[:], sum[:])
	return p
}

// String is the key as people copy it.
func (k *peerKey) String() string {
	return base64.RawURLEncoding.EncodeToString(append(k.print[:], k.secret[:]...))
}

func (k *peerKey) token() string { return base64.RawURLEncoding.EncodeToString(k.secret[:]) }

func parseKey(s string) (k peerKey, err error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != len(k.print)+len(k.secret) {
		return k, errors.New("--key: not a key that vmm receive has printed")
	}
	copy(k.secret[:], b[copy(k.print[:], b):])
	return k, nil
}

// newPeer makes a certificate and the key that goes with it.
func newPeer() (*tls.Config, *peerKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	key := &peerKey{print: fingerprint(der)}
	rand.Read(key.secret[:])
	return &tls.Config{MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}, key, nil
}
