package blk

import (
	"time"

	"vmm/virtio/ratelimit"
)

// Limit bounds what a guest may do with a disk; 0 is no bound. What was not
// used is saved up, for at most a second: the burst.
type Limit struct {
	BytesPerSecond int64
	IOPS           int64
}

type limiter struct {
	bytes, requests ratelimit.Bucket
}

func (l *limiter) set(limit Limit) {
	l.bytes.Set(limit.BytesPerSecond)
	l.requests.Set(limit.IOPS)
}

// wait returns when a request of n bytes may go on; false when done came
// first.
func (l *limiter) wait(n int64, done <-chan struct{}) bool {
	if !l.bytes.Bounded() && !l.requests.Bounded() {
		return true
	}
	now := time.Now()
	return ratelimit.Sleep(max(l.bytes.Take(n, now), l.requests.Take(1, now)), done)
}
