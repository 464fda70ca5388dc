package tests

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The user of secureRegistry, and its line of htpasswd.
const (
	registryUser     = "joe"
	registryPassword = "secret"
	registryLine     = "joe:$2y$05$kITj75tjwAKQ0Yzuez4Na.2vJc/lpGyBl.nr6ew/VdLHrdI2N4s.K\n"
)

// secureRegistry starts Debian's registry with TLS and a password. It returns where it is and the
// file of the authority that has signed its certificate.
func secureRegistry(t *testing.T) (host, authority string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	authority = file("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}))
	config, err := json.Marshal(map[string]any{
		"version": "0.1", "storage": map[string]any{"filesystem": map[string]any{"rootdirectory": filepath.Join(dir, "blobs")}},
		"auth": map[string]any{"htpasswd": map[string]any{"realm": "test", "path": file("htpasswd", []byte(registryLine))}},
		"http": map[string]any{"addr": address, "tls": map[string]any{"certificate": authority, "key": file("key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("docker-registry", "serve", file("config.yml", config)) // YAML is JSON too
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("the registry does not start:\n%s", log.String())
		}
	}
	_, port, _ := net.SplitHostPort(address)
	return "localhost:" + port, authority
}

// plainLayer is a layer as it is, not compressed.
func plainLayer(t *testing.T, files ...layerFile) v1.Layer {
	t.Helper()
	r, err := imageLayer(t, files...).Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer)
}

// xattrsOf are PAX records of extended attributes.
func xattrsOf(pairs ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		out["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return out
}

// oddFiles are what file systems can have and layers seldom do.
func oddFiles(t *testing.T) []layerFile {
	t.Helper()
	check, err := os.ReadFile(guestCheck)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Unix(-5, 500000000)
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x05\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	files := []layerFile{
		{tar.Header{Name: "check", Typeflag: tar.TypeReg, Mode: 0o755}, string(check)},
		{tar.Header{Name: "odd/", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 7, Gid: 8, PAXRecords: xattrsOf("trusted.t", "1")}, ""},
		{tar.Header{Name: "odd/char", Typeflag: tar.TypeChar, Mode: 0o620, Gid: 5, Devmajor: 1, Devminor: 3}, ""},
		{tar.Header{Name: "odd/block", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 70000}, ""},
		{tar.Header{Name: "odd/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		{tar.Header{Name: "odd/na\xff\xfeme", Typeflag: tar.TypeReg, Mode: 0o644}, "no UTF-8"},
		{tar.Header{Name: "odd/new\nline", Typeflag: tar.TypeReg, Mode: 0o644}, ""},
		{tar.Header{Name: "odd/" + strings.Repeat("n", 255), Typeflag: tar.TypeReg, Mode: 0o644}, "255"},
		{tar.Header{Name: "odd/far", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: strings.Repeat("x", 4095)}, ""},
		{tar.Header{Name: "odd/capable", Typeflag: tar.TypeReg, Mode: 0o4775, PAXRecords: xattrsOf( // as its ACL has it
			"security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"user.binary", "\x00\xff", "user.large", strings.Repeat("z", 3000), "system.posix_acl_access", acl)}, "x"},
		{tar.Header{Name: "odd/old", Typeflag: tar.TypeReg, Mode: 0o400, Uid: 1 << 31, Gid: 1<<32 - 2, ModTime: old}, ""},
		{tar.Header{Name: "odd/holes", Typeflag: tar.TypeReg, Mode: 0o644}, strings.Repeat("\x00", 3<<20) + "data" + strings.Repeat("\x00", 1<<20)},
		{tar.Header{Name: strings.Repeat("deep/", 20) + "x", Typeflag: tar.TypeReg, Mode: 0o644}, "x"},
		{tar.Header{Name: "replaced/by/a/file", Typeflag: tar.TypeReg, Mode: 0o644}, ""},
		{tar.Header{Name: "hidden/old", Typeflag: tar.TypeReg, Mode: 0o644}, ""},
	}
	for _, size := range []int{1, 4095, 4096, 4097, 70000} {
		files = append(files, layerFile{tar.Header{Name: fmt.Sprint("sizes/", size), Typeflag: tar.TypeReg, Mode: 0o644}, strings.Repeat("s", size)})
	}
	for i := range 300 {
		files = append(files, layerFile{tar.Header{Name: fmt.Sprintf("many/%d", i), Typeflag: tar.TypeReg, Mode: 0o644}, ""})
	}
	return files
}

// oddImage is an image of 60 layers that change what is below them.
func oddImage(t *testing.T) v1.Image {
	t.Helper()
	layers := []v1.Layer{baseLayer(t), imageLayer(t, oddFiles(t)...), plainLayer(t,
		layerFile{tar.Header{Name: "replaced", Typeflag: tar.TypeReg, Mode: 0o600}, "now a file"},
		layerFile{tar.Header{Name: "hidden/.wh..wh..opq", Typeflag: tar.TypeReg}, ""},
		layerFile{tar.Header{Name: "hidden/new", Typeflag: tar.TypeReg, Mode: 0o644}, "new"},
		layerFile{tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg}, ""},
		layerFile{tar.Header{Name: "sizes/same", Typeflag: tar.TypeLink, Linkname: "sizes/4097"}, ""},
		layerFile{tar.Header{Name: "odd/capable2", Typeflag: tar.TypeLink, Linkname: "odd/capable"}, ""})}
	for i := len(layers); i < 60; i++ {
		files := []layerFile{
			{tar.Header{Name: fmt.Sprintf("layer/%d", i), Typeflag: tar.TypeReg, Mode: 0o644, Uid: i}, strings.Repeat(fmt.Sprint(i), 2000)},
			{tar.Header{Name: fmt.Sprintf("layer/.wh.%d", i-2), Typeflag: tar.TypeReg}, ""},
			{tar.Header{Name: "layer/last", Typeflag: tar.TypeSymlink, Linkname: fmt.Sprint(i)}, ""},
		}
		if i%2 == 0 {
			layers = append(layers, plainLayer(t, files...))
		} else {
			layers = append(layers, imageLayer(t, files...))
		}
	}
	return containerImage(t, v1.Config{Env: []string{"PATH=/bin"}}, layers...)
}

// TestRegistry has an image go through a registry with TLS and a password, into a guest and out
// again. What the guest sees is what umoci makes of it, file by file.
func TestRegistry(t *testing.T) {
	needKVM(t)
	for _, tool := range []string{"docker-registry", "skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s: install its package", tool)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can have umoci make devices and other users' files")
	}
	runtimeDirFor(t)
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	host, authority := secureRegistry(t)
	dir := t.TempDir()
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(oddImage(t), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "x"})); err != nil {
		t.Fatal(err)
	}
	skopeo := func(args ...string) string {
		t.Helper()
		return must(t, "skopeo", append([]string{"--insecure-policy"}, args...)...)
	}
	creds := registryUser + ":" + registryPassword
	skopeo("copy", "-q", "--dest-creds", creds, "--dest-cert-dir", filepath.Dir(authority), "--dest-compress-format", "zstd", "oci:"+string(path)+":x", "docker://"+host+"/odd:1")
	wantRefusals(t, []refusal{{"pull " + host + "/odd:1", 125, "--insecure"}})
	t.Setenv("SSL_CERT_FILE", authority)
	wantRefusals(t, []refusal{{"pull " + host + "/odd:1", 125, "a login is needed"}})
	if out, status := vmmInput(t, registryPassword, "login", "-u", registryUser, "--password-stdin", host); status != 0 {
		t.Fatalf("login: status %d\n%s", status, out)
	}

	const skip = "skip=proc,sys,dev,run,etc/hostname,etc/hosts,etc/resolv.conf"
	must(t, "umoci", "unpack", "--image", string(path)+":x", filepath.Join(dir, "bundle"))
	want := must(t, guestCheck, "tree="+filepath.Join(dir, "bundle/rootfs"), skip)
	out, errs, status := inDir(t, dir, nil, "run", "--image", host+"/odd:1", "--timeout", bootLimit, "--", "/check", "tree=/", skip)
	if status != 0 || len(want) < 50000 {
		t.Fatalf("run: status %d, %d bytes wanted\n%s", status, len(want), errs)
	}
	differ(t, out, want)

	if out, status := vmm(t, "tag", host+"/odd:1", host+"/team/again:2"); status != 0 {
		t.Fatalf("tag: status %d\n%s", status, out)
	}
	out, status = vmm(t, "push", host+"/team/again:2")
	pushed := strings.Fields(skopeo("inspect", "--creds", creds, "--cert-dir", filepath.Dir(authority), "--format", "{{.Digest}}", "docker://"+host+"/team/again:2"))[0]
	if status != 0 || !strings.Contains(out, pushed) {
		t.Errorf("push: status %d, skopeo sees %s\n%s", status, pushed, out)
	}
	archive := filepath.Join(dir, "saved.tar")
	if out, status := vmm(t, "save", "-o", archive, host+"/odd:1"); status != 0 {
		t.Fatalf("save: status %d\n%s", status, out)
	}
	if saved := skopeo("inspect", "--format", "{{.Digest}} {{len .Layers}}", "oci-archive:"+archive); saved != pushed+" 60\n" {
		t.Errorf("skopeo sees %s saved", saved)
	}
	if out, status := vmm(t, "load", "-i", string(path), "--name", "plain"); status != 0 {
		t.Errorf("load of layers that are not compressed: status %d\n%s", status, out)
	}
}

// differ says which lines two texts do not have in common.
func differ(t *testing.T, got, want string) {
	t.Helper()
	has := map[string]bool{}
	for line := range strings.Lines(want) {
		has[line] = true
	}
	for line := range strings.Lines(got) {
		if !has[line] {
			t.Errorf("not wanted: %.300s", line)
		}
		delete(has, line)
	}
	for line := range has {
		t.Errorf("missing: %.300s", line)
	}
}
