package ring0

import "sync/atomic"

// room is the memory for code that the translations of a VM's CPUs may have together. Who is
// alone may use all of it; of several, one that lacks room and has more than its share
// forgets its own. Safe for concurrent use.
type room struct {
	used   atomic.Int64 // bytes
	owners atomic.Int64
}

const (
	maxRoom  = 46 << 20
	minShare = 4 << 20 // where so many CPUs take more than maxRoom
)

// join is for another CPU, and leave for one that is no more, with what it has taken.
func (r *room) join() { r.owners.Add(1) }
func (r *room) leave(n int) {
	r.take(-n)
	r.owners.Add(-1)
}

// take notes that a CPU has taken n bytes.
func (r *room) take(n int) { r.used.Add(int64(n)) }

// share returns what a CPU may have in any case, whole pages.
func (r *room) share() int { return max(maxRoom/int(r.owners.Load()), minShare) &^ pageMask }

// lacks reports whether a CPU that has n bytes may not take more.
func (r *room) lacks(n int) bool { return r.used.Load() > maxRoom && n > r.share() }
