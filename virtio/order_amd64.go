package virtio

// load16 reads what the other side may be writing, and before anything that
// follows; sync/atomic has no 16-bit operations.
//
//go:noescape
func load16(p *uint16) uint16

// store16 publishes v after everything that came before, and before anything
// that follows: it is a full fence, which the event indexes need (2.7.10.1).
//
//go:noescape
func store16(p *uint16, v uint16)
