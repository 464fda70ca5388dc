package compose

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// write makes a file, and returns its path.
func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const example = `
name: shop
services:
  web:
    image: web:1
    depends_on: [api]
    ports: ["8080:80", {target: 443, published: "8443", mode: host}]
    deploy:
      replicas: 1
  api:
    image: api:${TAG:-2}
    depends_on:
      db: {condition: service_healthy, restart: true}
      cache: {condition: service_started, required: false}
    networks:
      back: {aliases: [backend], mac_address: 02:00:00:00:00:01}
    <<: *secret
  cache: {image: cache, profiles: [big]}
  db:
    image: db
    privileged: true
    x-note: nothing
    healthcheck: {test: [CMD, "true"], start_interval: 1s}
x-secret: &secret
  cap_add: [NET_ADMIN]
networks:
  back: {driver: bridge}
volumes:
  data: {driver_opts: {o: bind}}
`

// TestLoad reads a file, and says by their lines which keys have no effect.
func TestLoad(t *testing.T) {
	text := strings.Replace(example, "    <<: *secret\n", "", 1)
	text = "x-first: &first\n  cap_add: [NET_ADMIN]\n" + strings.Replace(text, "  db:\n    image: db\n", "  db:\n    <<: *first\n    image: db\n", 1)
	file := write(t, t.TempDir(), "compose.yaml", text)
	p, err := Load(t.Context(), Options{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, s := range p.Order {
		order = append(order, s.Name)
	}
	if p.Name != "shop" || !slices.Equal(order, []string{"db", "api", "web"}) || p.Services["api"].Image != "api:2" {
		t.Errorf("%s: %v, %s", p.Name, order, p.Services["api"].Image)
	}
	lines := strings.Split(text, "\n")
	for _, key := range []string{"services.web.ports.mode", "services.web.deploy", "services.api.depends_on.db.restart", "services.api.networks.back.mac_address",
		"services.db.cap_add", "services.db.privileged", "services.db.healthcheck.start_interval", "networks.back.driver", "volumes.data.driver_opts"} {
		n := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, key[strings.LastIndex(key, ".")+1:]+":") }) + 1
		want := "compose.yaml:" + strconv.Itoa(n) + ": " + key + " has no effect here"
		if !slices.Contains(p.Warnings, want) {
			t.Errorf("no %q in\n%s", want, strings.Join(p.Warnings, "\n"))
		}
	}
	if len(p.Warnings) != 9 {
		t.Errorf("%d warnings:\n%s", len(p.Warnings), strings.Join(p.Warnings, "\n"))
	}
	for _, c := range []struct {
		names, want string
		fails       bool
	}{{"", "db api web", false}, {"api", "db api", false}, {"db web", "db api web", false}, {"nobody", "", true}} {
		var got []string
		list, err := p.With(strings.Fields(c.names))
		for _, s := range list {
			got = append(got, s.Name)
		}
		if (err != nil) != c.fails || strings.Join(got, " ") != c.want {
			t.Errorf("with %q: %v, %v", c.names, got, err)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	for name, text := range map[string]string{
		"a circle": "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "no YAML": "services: [", "another shape": "services: 5",
		"nobody to depend on": "services: {a: {image: x, depends_on: [b]}}", "an unknown key": "services: {a: {image: x, nonsense: 1}}",
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := Load(t.Context(), Options{Files: []string{write(t, t.TempDir(), "compose.yaml", text)}}); err == nil {
				t.Errorf("%+v", p.Project)
			}
		})
	}
	t.Chdir(t.TempDir())
	if _, err := Load(t.Context(), Options{}); !errors.Is(err, ErrNoFile) {
		t.Errorf("no file: %v", err)
	}
}

// FuzzUnsupported looks at any file.
func FuzzUnsupported(f *testing.F) {
	f.Add(example)
	f.Add("a: &a\n  services: *a\n")
	f.Add("services: &s {a: {volumes: [{type: x, *s : y}]}}")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		unsupported(write(t, dir, "compose.yaml", text))
	})
}

// TestOneLine: what is wrong with a file is said in one line.
func TestOneLine(t *testing.T) {
	for what, text := range map[string]string{
		"includes itself": "name: x\ninclude: [compose.yaml]\nservices: {a: {image: a}}\n",
		"aliases":         "x-a: &a [1, 2]\nx-b: *c\n",
		"kinds":           "name: x\nservices: {a: {image: [1], ports: {}}, b: 1}\n",
	} {
		file := write(t, t.TempDir(), "compose.yaml", text)
		if _, err := Load(t.Context(), Options{Files: []string{file}}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestReadable: what does not end is not read.
func TestReadable(t *testing.T) {
	large := filepath.Join(t.TempDir(), "large.yaml")
	f, err := os.Create(large)
	if err == nil {
		err = errors.Join(f.Truncate(maxFile+1), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"/dev/zero": "has to be a file", t.TempDir(): "has to be a file", large: "larger than 16 MiB"} {
		if _, err := Load(t.Context(), Options{Files: []string{file}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestFromInput reads a file from standard input, twice as any other, with paths from the current directory.
func TestFromInput(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shop")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	over := write(t, t.TempDir(), "over.yaml", "services: {a: {image: b}}")
	for _, files := range [][]string{{FromInput}, {FromInput, over}} {
		p, err := Load(t.Context(), Options{Files: files, Input: strings.NewReader("services:\n  a:\n    image: a\n    privileged: true\n    volumes: [./x:/x]\n")})
		if err != nil {
			t.Fatal(err)
		}
		if want := "standard-input:4: services.a.privileged has no effect here"; !slices.Equal(p.Warnings, []string{want}) {
			t.Errorf("%q", p.Warnings)
		}
		if v := p.Services["a"].Volumes; p.Name != "shop" || len(v) != 1 || p.Path(v[0].Source) != filepath.Join(dir, "x") {
			t.Errorf("%s, %+v", p.Name, v)
		}
	}
	for what, input := range map[string]io.Reader{"no YAML": strings.NewReader("services: ["), "another shape": strings.NewReader("services: 5"),
		"endless": io.LimitReader(spaces{}, 1<<40), "an error": iotest.ErrReader(errors.New("broken"))} {
		if _, err := Load(t.Context(), Options{Files: []string{FromInput}, Input: input}); err == nil || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "/tmp") || !strings.Contains(err.Error(), "standard") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

type spaces struct{}

// Read implements io.Reader.
func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
