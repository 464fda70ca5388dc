package ring0

import "unsafe"

// cas128 is CMPXCHG16B: it stores new where old is found, and returns what was
// found. p must be aligned to 16 bytes.
//
//go:noescape
func cas128(p unsafe.Pointer, oldLo, oldHi, newLo, newHi uint64) (lo, hi uint64, equal bool)
