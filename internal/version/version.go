// Package version tells which vmm this is. The tags of the repository are the source:
// there is no constant to be raised, and a build that is of no tag says so.
package version

import (
	"runtime/debug"
	"strings"
)

// tag is what git describe says of the commit. The Makefile sets it, by the linker's
// -X; a plain go build leaves it empty.
var tag string

// untagged stands for the version of what no tag leads to.
const untagged = "untagged"

// String returns the version and the Go release that built it, such as
// "v0.2.0 go1.26.8". "v0.2.0-3-gabc1234" is three commits after that tag, and what
// begins with "untagged" has no tag before it.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return describe(tag, info)
}

// describe prefers the linker's tag to what go build has found itself.
func describe(tag string, info *debug.BuildInfo) string {
	v := tag
	if v == "" {
		v = info.Main.Version
	}
	switch {
	case v == "" || v == "(devel)": // built without git
		v = untagged
	case strings.HasPrefix(v, "v0.0.0-"): // Go's version of a commit without a tag before it
		v = untagged + v[strings.LastIndexByte(v, '-'):]
	}
	return strings.TrimSpace(v + " " + info.GoVersion)
}
