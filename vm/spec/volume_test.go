package spec

import (
	"strings"
	"testing"
)

func TestReadVolume(t *testing.T) {
	for text, want := range map[string]Volume{
		"data:/var/lib/x":  {Kind: NamedVolume, Source: "data", Guest: "/var/lib/x"},
		"data:/x/:ro":      {Kind: NamedVolume, Source: "data", Guest: "/x", ReadOnly: true},
		"data:/x:nocopy,z": {Kind: NamedVolume, Source: "data", Guest: "/x", NoCopy: true},
		"/srv:/x:rw":       {Kind: BindVolume, Source: "/srv", Guest: "/x", Make: true},
		"./src:/x":         {Kind: BindVolume, Source: "./src", Guest: "/x", Make: true},
		".:/x:ro,Z":        {Kind: BindVolume, Source: ".", Guest: "/x", Make: true, ReadOnly: true},
		"~/src:/x":         {Kind: BindVolume, Source: "~/src", Guest: "/x", Make: true},
	} {
		if got, err := ReadVolume(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"/x": "without a name", "": "GUEST", "data": "GUEST", "data:x": "GUEST", ":/x": "GUEST", "a:/b:c:d": "GUEST", "a:/b:shared": "no option"} {
		if got, err := ReadVolume(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestReadMount(t *testing.T) {
	for text, want := range map[string]Volume{
		"type=bind,source=/srv,target=/x,readonly":                {Kind: BindVolume, Source: "/srv", Guest: "/x", ReadOnly: true},
		"type=bind,src=a,dst=/x,ro=false,bind-create-src=1":       {Kind: BindVolume, Source: "a", Guest: "/x", Make: true},
		"source=data,destination=/x,volume-nocopy":                {Kind: NamedVolume, Source: "data", Guest: "/x", NoCopy: true},
		"type=tmpfs,target=/x/,tmpfs-size=64m,tmpfs-mode=1777":    {Kind: TmpfsVolume, Guest: "/x", Options: "size=67108864,mode=1777"},
		"type=volume,source=a,target=/x,readonly=0,consistency=x": {Kind: NamedVolume, Source: "a", Guest: "/x"},
	} {
		if got, err := ReadMount(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"": "no such option", "type=npipe,source=a,target=/x": "type=npipe", "type=bind,target=/x": "source=", "type=tmpfs,source=a,target=/x": "no source",
		"type=volume,target=/x": "without a name", "type=bind,source=a": "target=", "type=bind,source=a,target=x": "target=", "a=b": "no such option",
		"type=tmpfs,target=/x,tmpfs-size=x": "tmpfs-size", "type=bind,source=a,target=/x,readonly=maybe": "on or off",
	} {
		if got, err := ReadMount(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
