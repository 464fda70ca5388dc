package blk

import (
	"sync"
	"time"
)

// Limit bounds what a guest may do with a disk; 0 is no bound. What was not
// used is saved up, for at most a second: the burst.
type Limit struct {
	BytesPerSecond int64
	IOPS           int64
}

// limiter is two token buckets that may go below zero: a request passes while
// there are tokens, and those that it takes too many are waited for by the
// next.
type limiter struct {
	bytes, requests bucket
}

type bucket struct {
	rate   float64 // tokens a second; 0 is no bound
	mu     sync.Mutex
	tokens float64
	at     time.Time
}

func newLimiter(l Limit) limiter {
	now := time.Now()
	full := func(rate int64) bucket {
		return bucket{rate: float64(rate), tokens: float64(rate), at: now}
	}
	return limiter{full(l.BytesPerSecond), full(l.IOPS)}
}

// take takes n tokens and returns how long to wait before going on.
func (b *bucket) take(n float64, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+now.Sub(b.at).Seconds()*b.rate, b.rate)
	b.at = now
	wait := time.Duration(max(-b.tokens, 0) / b.rate * float64(time.Second))
	b.tokens -= n
	return wait
}

// wait returns when a request of n bytes may go on; false when done came
// first.
func (l *limiter) wait(n int64, done <-chan struct{}) bool {
	if l.bytes.rate == 0 && l.requests.rate == 0 {
		return true
	}
	now, d := time.Now(), time.Duration(0)
	if l.bytes.rate > 0 {
		d = l.bytes.take(float64(n), now)
	}
	if l.requests.rate > 0 {
		d = max(d, l.requests.take(1, now))
	}
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-done:
		return false
	}
}
