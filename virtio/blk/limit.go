package blk

// Limit bounds what a guest may do with a disk; 0 is no bound. What was not
// used is saved up, for at most a second: the burst.
type Limit struct {
	BytesPerSecond int64
	IOPS           int64
}
