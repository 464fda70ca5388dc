// Package vmname says what a VM may be called.
package vmname

import "regexp"

// valid has the form of a hostname, which a name becomes.
var valid = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// Valid reports whether a name has the right form: letters, digits and dashes between
// them, 1 to 63.
func Valid(name string) bool { return valid.MatchString(name) }
