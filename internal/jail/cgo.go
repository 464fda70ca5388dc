//go:build cgo

package jail

// cgo reports whether the program is linked with a C library.
const cgo = true
