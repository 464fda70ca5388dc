package cli

import (
	"strings"
	"testing"

	"vmm/storage/volume"
	"vmm/vm"
	"vmm/vm/spec"
)

// TestVolumesInShort: -v is a volume where one follows, as docker has it, and else --verbose.
func TestVolumesInShort(t *testing.T) {
	run, _, err := Command().Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"-v -- true":                             "-v -- true",
		"-v":                                     "-v",
		"-v data:/x -- ls":                       "--volume data:/x -- ls",
		"-vdata:/x -- ls":                        "--volume=data:/x -- ls",
		"-v -v .:/x:ro -v":                       "-v --volume .:/x:ro -v",
		"--image x -v /x ls":                     "--image x --volume /x ls",
		"-d -v a:/b --name n -v c:/d sh -v e:/f": "-d --volume a:/b --name n --volume c:/d sh -v e:/f",
		"-- -v a:/b":                             "-- -v a:/b",
		"-m 1G -v a:/b":                          "-m 1G --volume a:/b",
		"-itv a:/b":                              "-itv a:/b",  // as docker would not either: -v is alone here
		"-e -v a:/b":                             "-e -v a:/b", // the value of -e; then a command
		"--env=A=1 -v a:/b":                      "--env=A=1 --volume a:/b",
		"-v --timeout 5s true":                   "-v --timeout 5s true",
		"-v ls /":                                "-v ls /",
	} {
		if got := strings.Join(volumesInShort(run.Flags(), strings.Fields(args)), " "); got != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

// TestRefusedVolumes: nothing is made for volumes at places where none can be.
func TestRefusedVolumes(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	for want, list := range map[string][]spec.Volume{
		"the guest's root": {{Kind: spec.NamedVolume, Source: "a", Guest: "/"}},
		"a and b are both": {{Kind: spec.NamedVolume, Source: "a", Guest: "/x"}, {Kind: spec.NamedVolume, Source: "b", Guest: "/x"}},
	} {
		if err := addVolumes(&vm.Config{}, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", list, err)
		}
	}
	store, err := volume.Open()
	if err != nil {
		t.Fatal(err)
	}
	if list, err := store.List(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v is left", list, err)
	}
}
