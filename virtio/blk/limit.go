package blk

// Limit bounds what a guest may do with a disk, with all of its queues together; 0 is no
// bound. What was not used is saved up, for at most a second: the burst.
type Limit struct {
	BytesPerSecond int64 // read or written
	IOPS           int64 // requests a second
}
