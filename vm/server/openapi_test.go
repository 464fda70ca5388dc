package server

import (
	"encoding"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"vmm/vm/api"
)

// schema is what this API uses of OpenAPI's.
type schema struct {
	Ref         string `yaml:"$ref"`
	Type        string
	Format      string
	Description string
	Const       string
	Enum        []string
	Required    []string
	Properties  map[string]*schema
	Items       *schema
	Values      *schema `yaml:"additionalProperties"`
}

// content is a body, by its media type.
type content map[string]struct{ Schema *schema }

type response struct {
	Ref         string `yaml:"$ref"`
	Description string
	Content     content
}

type operation struct {
	Summary, Description string
	Parameters           []struct {
		Name, In string
		Required bool
		Schema   *schema
	}
	RequestBody *struct {
		Required bool
		Content  content
	} `yaml:"requestBody"`
	Responses map[string]response
}

// document is docs/openapi.yaml, against the types that the routes have.
type document struct {
	OpenAPI string `yaml:"openapi"`
	Info    struct{ Title, Version, Description string }
	Servers []struct{ URL string }
	Paths   map[string]map[string]operation

	Components struct {
		Responses map[string]response
		Schemas   map[string]*schema
	}

	t    *testing.T
	used map[string]bool // schemas
}

// TestOpenAPI holds docs/openapi.yaml to the routes and the types: each is in both.
func TestOpenAPI(t *testing.T) {
	f, err := os.Open("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := document{t: t, used: map[string]bool{}}
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	if d.Info.Version != api.Version {
		t.Errorf("version %s, want %s", d.Info.Version, api.Version)
	}
	for path, methods := range d.Paths {
		for method := range methods {
			if _, ok := routes[path][strings.ToUpper(method)]; !ok {
				t.Errorf("%s %s is not served", method, path)
			}
		}
	}
	for path, methods := range routes {
		for method, r := range methods {
			o, ok := d.Paths[path][strings.ToLower(method)]
			if !ok {
				t.Errorf("%s %s is not in the document", method, path)
				continue
			}
			d.operation(method+" "+path, &o, r)
		}
	}
	d.body("an error", d.Components.Responses["Error"].Content, "application/json", reflect.TypeFor[api.ErrorAnswer]())
	codes := d.Components.Schemas["Error"].Properties["code"].Enum
	states := d.Components.Schemas["VM"].Properties["state"].Enum
	var want []string
	for _, e := range api.Errors {
		want = append(want, e.Code)
	}
	if !slices.Equal(codes, want) || !slices.Equal(states, []string{string(api.Running), string(api.Restarting), string(api.Exited), string(api.Broken)}) {
		t.Errorf("codes %q, states %q", codes, states)
	}
	for name := range d.Components.Schemas {
		if !d.used[name] {
			t.Errorf("nothing is a %s", name)
		}
	}
}

// operation compares a method of a path.
func (d *document) operation(where string, o *operation, r route) {
	if o.Summary == "" {
		d.t.Errorf("%s: no summary", where)
	}
	var request content
	if o.RequestBody != nil {
		if request = o.RequestBody.Content; !o.RequestBody.Required {
			d.t.Errorf("%s: it needs a body", where)
		}
	}
	d.body(where+": request", request, "application/json", reflect.TypeOf(r.request))
	status, media, answer := "200", "application/json", reflect.TypeOf(r.answer)
	switch {
	case r.protocol != "":
		status = "101"
		if len(o.Parameters) != 1 || o.Parameters[0].Name != "Upgrade" || o.Parameters[0].Schema.Const != r.protocol {
			d.t.Errorf("%s: Upgrade is not %s", where, r.protocol)
		}
	case r.lines:
		media = "application/jsonl"
	case r.answer == nil && strings.HasSuffix(where, api.PathMetrics):
		media, answer = "text/plain", reflect.TypeFor[string]()
	}
	if _, ok := o.Responses[status]; !ok {
		d.t.Errorf("%s: no answer %s", where, status)
	}
	d.body(where+": answer", o.Responses[status].Content, media, answer)
	if e := o.Responses["default"]; e.Ref != "" && e.Ref != "#/components/responses/Error" {
		d.t.Errorf("%s: errors are %s", where, e.Ref)
	}
}

// body compares a body with a type, which is nil if there is none.
func (d *document) body(where string, c content, media string, t reflect.Type) {
	if t == nil {
		if len(c) > 0 {
			d.t.Errorf("%s: there is none", where)
		}
		return
	}
	if len(c) != 1 || c[media].Schema == nil {
		d.t.Errorf("%s: it is %s", where, media)
		return
	}
	d.compare(where, c[media].Schema, t)
}

// compare compares a schema with a type.
func (d *document) compare(where string, s *schema, t reflect.Type) {
	fail := func(format string, args ...any) { d.t.Errorf(where+": "+format, args...) }
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if s.Ref != "" {
		name := strings.TrimPrefix(s.Ref, "#/components/schemas/")
		// An event's name is made of its result's.
		if event, ok := strings.CutSuffix(name, "Event"); name != t.Name() && !(ok && strings.HasSuffix(t.Name(), "."+event+"Result]")) {
			fail("it is a %s, and not a %s", t.Name(), name)
		}
		d.used[name] = true
		if s = d.Components.Schemas[name]; s == nil {
			fail("there is no schema %s", name)
			return
		}
	} else if s.Type == "object" && t.Kind() == reflect.Struct {
		fail("%s has no schema of its own", t.Name())
	}
	is := func(kind string) {
		if s.Type != kind {
			fail("the type is %s, and not %s", kind, s.Type)
		}
	}
	switch k := t.Kind(); {
	case t == reflect.TypeFor[json.RawMessage](): // which Go's package vm describes
		is("object")
	case t == reflect.TypeFor[time.Time]():
		if is("string"); s.Format != "date-time" {
			fail("it is a time")
		}
	case t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || k == reflect.String:
		is("string")
	case t == reflect.TypeFor[time.Duration]():
		if is("integer"); !strings.Contains(s.Description, "nanoseconds") {
			fail("the unit is not told")
		}
	case k == reflect.Bool:
		is("boolean")
	case k >= reflect.Int && k <= reflect.Uint64:
		is("integer")
	case k == reflect.Float64:
		is("number")
	case k == reflect.Slice && s.Items != nil:
		is("array")
		d.compare(where+"[]", s.Items, t.Elem())
	case k == reflect.Map && s.Values != nil:
		is("object")
		d.compare(where+"{}", s.Values, t.Elem())
	case k == reflect.Struct:
		is("object")
		d.fields(where, s, t)
	default:
		fail("a %v is described as %+v", t, s)
	}
}

// fields compares what a structure has.
func (d *document) fields(where string, s *schema, t reflect.Type) {
	left := maps.Clone(s.Properties)
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !regexp.MustCompile(`^[a-z][A-Za-z]*$`).MatchString(name) {
			d.t.Errorf("%s: %s is called %q, which is not camelCase", where, f.Name, name)
		}
		p := left[name]
		if delete(left, name); p == nil {
			d.t.Errorf("%s: %s is not in the document", where, name)
			continue
		}
		if needed := options == ""; needed != slices.Contains(s.Required, name) {
			d.t.Errorf("%s: whether %s can be missing: %v", where, name, !needed)
		}
		d.compare(where+"."+name, p, f.Type)
	}
	for name := range left {
		d.t.Errorf("%s: there is no %s", where, name)
	}
}

// TestDocs holds docs/api.md to the routes and the errors, and runs its commands.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, m := range regexp.MustCompile("`([A-Z]+) (/[a-z0-9/]*)`").FindAllStringSubmatch(text, -1) {
		if _, ok := routes[m[2]][m[1]]; !ok {
			t.Errorf("%s is not served", m[0])
		}
	}
	for path, methods := range routes {
		for method, r := range methods {
			if !strings.Contains(text, "`"+method+" "+path+"`") || !strings.Contains(text, r.protocol) {
				t.Errorf("%s %s %s is not told of", method, path, r.protocol)
			}
		}
	}
	for _, e := range api.Errors {
		if !strings.Contains(text, "`"+e.Code+"`") {
			t.Errorf("the code %s is not told of", e.Code)
		}
	}
	runtime := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	dir := filepath.Join(runtime, "vmm", "dev")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	vm := &fakeVM{}
	s := New(vm)
	defer s.Close()
	if err := s.Listen(filepath.Join(dir, "control.sock")); err != nil {
		t.Fatal(err)
	}
	s.Serve()
	commands := regexp.MustCompile(`(?m)^    (curl .*)$`).FindAllStringSubmatch(text, -1)
	for _, c := range commands {
		command := strings.Replace(c[1], "curl", "curl --fail --silent --show-error", 1)
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", c[1], err, out)
		}
	}
	if did := vm.did(); !slices.Equal(did, []string{"stats", "snapshot {Dir:/saved Replace:false Parent: Zstd:true DiskCopy:false Stop:false Files:[] ParentID: Overlays:map[]}", "done", "publish 127.0.0.1:8080:80", "pause"}) {
		t.Errorf("%d commands, and the VM was asked %q", len(commands), did)
	}
	// The error that is shown is one as it is.
	vm.fail(api.ErrNotPaused)
	socket := filepath.Join(dir, "control.sock")
	out, err := exec.Command("curl", "--silent", "--unix-socket", socket, "-X", "POST", "http://vmm"+api.PathResume).Output()
	shown := strings.NewReplacer(": {", ":{", `": "`, `":"`, `", "`, `","`).Replace(text)
	if err != nil || !strings.Contains(shown, strings.TrimSpace(string(out))) {
		t.Errorf("the error is %s, %v", out, err)
	}
}
