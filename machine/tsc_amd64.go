package machine

// rdtsc reads the host's time-stamp counter.
//
//go:noescape
func rdtsc() uint64
