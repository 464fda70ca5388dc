package cli

import (
	"slices"
	"testing"
	"time"

	"vmm/network/gateway"
)

// TestAge: how long ago an image was made.
func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		5 * time.Second: "5 seconds ago", 90 * time.Second: "90 seconds ago", 51*time.Minute + time.Second: "51 minutes ago",
		3 * time.Hour: "3 hours ago", 47 * time.Hour: "47 hours ago", 50 * time.Hour: "2 days ago", 800 * 24 * time.Hour: "2 years ago",
		-time.Hour: "0 seconds ago",
	} {
		if got := age(time.Now().Add(-d)); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
	if got := age(time.Time{}); got != "unknown" {
		t.Error(got)
	}
}

// TestImageCommandLine: what runs, as docker's table of ENTRYPOINT and CMD has it.
func TestImageCommandLine(t *testing.T) {
	for _, c := range []struct {
		entrypoint, command, given []string
		other                      string
		otherGiven                 bool
		want                       []string
	}{
		{nil, []string{"sh"}, nil, "", false, []string{"sh"}},
		{[]string{"e"}, []string{"c"}, nil, "", false, []string{"e", "c"}},
		{[]string{"e"}, []string{"c"}, []string{"g"}, "", false, []string{"e", "g"}},
		{[]string{"e"}, []string{"c"}, nil, "o", true, []string{"o"}},
		{[]string{"e"}, []string{"c"}, []string{"g"}, "o", true, []string{"o", "g"}},
		{[]string{"e"}, []string{"c"}, []string{"g"}, "", true, []string{"g"}},
		{nil, nil, nil, "", false, []string{}},
	} {
		if got := imageCommandLine(c.entrypoint, c.command, c.given, c.other, c.otherGiven); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestStartsInit: an init is known by its path, or as systemd, also where an entry point is to start it.
func TestStartsInit(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want bool
	}{
		{nil, false}, {[]string{"/bin/sh"}, false}, {[]string{"init"}, false}, {[]string{"/opt/init"}, false},
		{[]string{"/sbin/init"}, true}, {[]string{"/init"}, true}, {[]string{"/usr/sbin/init"}, true}, {[]string{"/usr/local/sbin/init"}, true},
		{[]string{"/lib/systemd/systemd", "--unit=rescue.target"}, true}, {[]string{"systemd"}, true}, {[]string{"/entry.sh", "/sbin/init"}, true},
	} {
		if got := startsInit(c.argv); got != c.want {
			t.Errorf("%q: %v", c.argv, got)
		}
	}
}

// TestPublishExposed: what an image exposes is published once, by a free port.
func TestPublishExposed(t *testing.T) {
	given, err := gateway.ParsePublications("8080:80")
	if err != nil {
		t.Fatal(err)
	}
	list, err := publishExposed(given, map[string]struct{}{"80/tcp": {}, "80/udp": {}, "443": {}, "7000-7001/tcp": {}})
	var got []string
	for _, p := range list {
		got = append(got, p.String())
	}
	if want := []string{given[0].String(), "[::]:0:443", "[::]:0:7000", "[::]:0:7001", "[::]:0:80/udp"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, want %q, %v", got, want, err)
	}
	for _, port := range []string{"22:443", "0.0.0.0:22:443/tcp", ":80"} {
		if list, err := publishExposed(nil, map[string]struct{}{port: {}}); err == nil {
			t.Errorf("an image chooses ports of the host: %s: %v", port, list)
		}
	}
	if _, err := publishExposed(nil, map[string]struct{}{"x": {}}); err == nil {
		t.Error("a port x is published")
	}
}
