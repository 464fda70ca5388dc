// Package ratelimit bounds what a guest may do with a device.
package ratelimit

import (
	"sync"
	"time"
)

// Bucket is a token bucket that may go below zero: who takes passes while there
// are tokens, and those that it takes too many are waited for by the next. What
// was not used is saved up, for at most a second: the burst.
type Bucket struct {
	rate   float64 // tokens a second; 0 is no bound
	mu     sync.Mutex
	tokens float64
	at     time.Time
}

// Set makes the rate in tokens a second, 0 for no bound. It comes before
// everything else.
func (b *Bucket) Set(rate int64) {
	b.rate, b.tokens, b.at = float64(rate), float64(rate), time.Now()
}

// Bounded reports whether there is a bound.
func (b *Bucket) Bounded() bool { return b.rate > 0 }

// Take takes n tokens and returns how long to wait before going on.
func (b *Bucket) Take(n int64, now time.Time) time.Duration { return b.take(n, now, true) }

// Try takes n tokens only if nothing need be waited for. Otherwise it returns
// how long.
func (b *Bucket) Try(n int64, now time.Time) time.Duration { return b.take(n, now, false) }

func (b *Bucket) take(n int64, now time.Time, always bool) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	wait := b.wait()
	if wait == 0 || always {
		b.tokens -= float64(n)
	}
	return wait
}

// fill adds what has come since the last time; mu is held.
func (b *Bucket) fill(now time.Time) {
	b.tokens = min(b.tokens+now.Sub(b.at).Seconds()*b.rate, b.rate)
	b.at = now
}

// wait is how long it takes to be above zero; mu is held.
func (b *Bucket) wait() time.Duration {
	return time.Duration(max(-b.tokens, 0) / b.rate * float64(time.Second))
}

// Limiter bounds requests or packets by their bytes and by their number. All but Set can
// be called from any goroutine, as with a Bucket.
type Limiter struct{ bytes, count Bucket }

// Set makes the rates, in bytes and in requests a second, 0 for no bound. It comes before
// everything else.
func (l *Limiter) Set(bytes, count int64) {
	l.bytes.Set(bytes)
	l.count.Set(count)
}

// Bounded reports whether there is a bound.
func (l *Limiter) Bounded() bool { return l.bytes.Bounded() || l.count.Bounded() }

// Take accounts for one of n bytes and returns how long to wait before going on.
func (l *Limiter) Take(n int64) time.Duration {
	now := time.Now()
	return max(l.bytes.Take(n, now), l.count.Take(1, now))
}

// Try is Take only if nothing need be waited for.
func (l *Limiter) Try(n int64) time.Duration {
	now := time.Now()
	d := l.count.Try(0, now)
	if d == 0 {
		d = l.bytes.Try(n, now)
	}
	if d == 0 {
		l.count.Take(1, now)
	}
	return d
}

// Sleep waits for d; false when done came first.
func Sleep(d time.Duration, done <-chan struct{}) bool {
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
