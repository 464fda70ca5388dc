// Package vmname says what a VM may be called.
package vmname

import "regexp"

// form is that of a hostname, which a name becomes. Its length is no part of it: counted
// repetitions are written out when the program starts.
var form = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)

// Valid reports whether a name has the right form: letters, digits and dashes between
// them, 1 to 63.
func Valid(name string) bool { return len(name) <= 63 && form.MatchString(name) }
