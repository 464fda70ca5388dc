package vm

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
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"vmm/internal/unixsocket"
	"vmm/machine/migration"
)

// dialTime bounds connecting to the other side.
const dialTime = 20 * time.Second

// ErrKey is in the error for a text that is not the key of a Receiver.
var ErrKey = errors.New("not a key that a receiver has printed")

// SplitAddress reads the address of a Receiver, tcp://HOST:PORT or unix:PATH, into what
// net.Dial takes.
func SplitAddress(s string) (network, addr string, err error) {
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

// Listen makes a Receiver at tcp://HOST:PORT or unix:PATH. Over TCP everything is
// encrypted, and key is what a source needs to send a VM; it is empty for a socket, which
// only this user can open. log, which several goroutines may call, is told of sources that are refused.
func Listen(address string, log func(error)) (r *Receiver, key string, err error) {
	network, addr, err := SplitAddress(address)
	if err != nil {
		return nil, "", err
	}
	if log == nil {
		log = func(error) {}
	}
	r = &Receiver{log: log}
	if network == "unix" {
		l, err := unixsocket.Listen(addr)
		r.l, r.own = l, true
		return r, "", err
	}
	config, k, err := newPeer()
	if err != nil {
		return nil, "", err
	}
	r.token = k.token()
	r.l, err = tls.Listen(network, addr, config)
	return r, k.String(), err
}

// Addr is where the Receiver listens.
func (r *Receiver) Addr() net.Addr { return r.l.Addr() }

// Dial connects to a Receiver's address, for MigrateOptions.Conn.
func Dial(ctx context.Context, address string) (net.Conn, error) {
	network, addr, err := SplitAddress(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// openPeer makes of a connection to a Receiver one that a VM can be sent over. Over TCP,
// the other side's certificate must be the one of the key, and it is told the key's
// secret. After an error the connection is closed.
func openPeer(ctx context.Context, conn net.Conn, address, key string, hello *migration.Hello) (_ net.Conn, err error) {
	network, _, err := SplitAddress(address)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if network == "unix" {
		return conn, nil
	}
	k, err := parseKey(key)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	hello.Token = k.token()
	c := tls.Client(conn, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // no authority has signed it: it is compared itself
		VerifyConnection: func(c tls.ConnectionState) error {
			print := fingerprint(c.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(print[:], k.print[:]) != 1 {
				return errors.New("the other side is not the receiver that the key is of")
			}
			return nil
		},
	})
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
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
		return k, ErrKey
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
