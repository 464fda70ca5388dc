package agent

import (
	"os"
	"slices"
	"strings"
)

// Defaults are what the commands of a container image have that say nothing else (OCI image
// specification, "config.Env", "config.User", "config.WorkingDir").
type Defaults struct {
	Env  []string `json:"env,omitempty"`  // NAME=VALUE
	User string   `json:"user,omitempty"` // USER or UID, with :GROUP or :GID; root if empty
	Dir  string   `json:"dir,omitempty"`  // absolute; / if empty. It is made, if it is not there
}

// complete returns a request with what it leaves out; d is nil where there are no defaults.
func (d *Defaults) complete(e *Exec) *Exec {
	if d == nil {
		return e
	}
	whole := *e
	if whole.User == "" {
		whole.User = d.User
	}
	if whole.Dir == "" {
		whole.Dir = d.Directory()
	}
	return &whole
}

// Directory is where commands begin.
func (d *Defaults) Directory() string {
	if d.Dir == "" {
		return "/"
	}
	return d.Dir
}

// environment is what docker gives a command before it adds what the request says: no more
// than it needs, and then what the image says.
func (d *Defaults) environment(u *account) []string {
	host, _ := os.Hostname()
	return slices.Concat([]string{"PATH=" + Path, "HOSTNAME=" + host, "HOME=" + u.home}, d.Env)
}

// inContainer makes of a user that an image's /etc/passwd does not know what docker makes of
// one: of the group root, and at home in /.
func (u *account) inContainer(spec string) *account {
	if !u.known {
		if u.home = "/"; !strings.Contains(spec, ":") {
			u.credential.Gid = 0
		}
	}
	return u
}
