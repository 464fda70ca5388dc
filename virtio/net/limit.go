package net

import (
	"sync/atomic"
	"time"

	"vmm/virtio/ratelimit"
)

// Limit bounds what a device moves in each direction; 0 is no bound. What was
// not used is saved up, for at most a second: the burst.
type Limit struct {
	BytesPerSecond   int64
	PacketsPerSecond int64
}

type limiter struct {
	bytes, packets ratelimit.Bucket
}

func (l *limiter) set(limit Limit) {
	l.bytes.Set(limit.BytesPerSecond)
	l.packets.Set(limit.PacketsPerSecond)
}

func (l *limiter) bounded() bool { return l.bytes.Bounded() || l.packets.Bounded() }

// take accounts for a packet of n bytes and returns how long to wait before it
// goes on.
func (l *limiter) take(n int) time.Duration {
	now := time.Now()
	return max(l.bytes.Take(int64(n), now), l.packets.Take(1, now))
}

// try is take only if nothing need be waited for.
func (l *limiter) try(n int) time.Duration {
	now := time.Now()
	d := l.packets.Try(0, now)
	if d == 0 {
		d = l.bytes.Try(int64(n), now)
	}
	if d == 0 {
		l.packets.Take(1, now)
	}
	return d
}

// Count is what went in one direction.
type Count struct {
	Packets, Bytes, Dropped uint64
}

type count struct {
	packets, bytes, dropped atomic.Uint64
}

func (c *count) add(bytes int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(bytes))
}

func (c *count) read() Count { return Count{c.packets.Load(), c.bytes.Load(), c.dropped.Load()} }

// Counters counts frames as the guest sees them: received are those that it
// got. A frame that is to be segmented counts once.
type Counters struct {
	received, sent count
}

// Counts returns what was received and sent so far.
func (d *Device) Counts() (received, sent Count) {
	return d.counters.received.read(), d.counters.sent.read()
}
