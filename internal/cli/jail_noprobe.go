//go:build !jailprobe

package cli

// probeJail does nothing: tests build a program that tries the jail from inside.
func probeJail() {}
