package main

// holdAVX puts values made of seed into YMM0 to YMM15, spins, and reports
// whether they are still there.
//
//go:noescape
func holdAVX(seed, spins uint64) bool
