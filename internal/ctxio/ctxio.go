// Package ctxio reads until a context ends.
package ctxio

import (
	"context"
	"io"
)

// Reader returns a reader of r that ends with the context's cause when ctx has ended: between
// reads, for it ends none that waits.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
