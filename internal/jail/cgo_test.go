//go:build cgo

package jail

// cgo is set where the tests are built with it, as for the race detector.
const cgo = true
