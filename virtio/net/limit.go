package net

import "sync/atomic"

// Limit bounds what a device moves in each direction, with all of its queues together; 0
// is no bound. What was not used is saved up, for at most a second: the burst. What comes
// from the link beyond that waits there, and what the guest sends waits in its queue.
type Limit struct {
	BytesPerSecond   int64 // of frames, without their check sequence
	PacketsPerSecond int64 // one that is to be segmented counts once
}

// Count is what went in one direction, since New. Bytes are those of Ethernet frames
// without their check sequence; one that is to be segmented counts once. Dropped are
// packets, which are in neither of the others.
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

// counters counts frames as the guest sees them: received are those that it got.
type counters struct {
	received, sent count
}

// Counts returns what the guest has received and sent so far.
func (d *Device) Counts() (received, sent Count) {
	return d.counters.received.read(), d.counters.sent.read()
}
