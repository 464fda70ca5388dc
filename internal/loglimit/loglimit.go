// Package loglimit bounds what is logged of somebody who can make mistakes for ever, as
// a guest can.
package loglimit

import (
	"fmt"
	"sync/atomic"
)

// Most is how many errors a function of New lets pass.
const Most = 32

// New returns a function that passes the first Most errors on to log, says then that
// there are more, and drops those. It may be called from any goroutine if log may.
func New(log func(error)) func(error) {
	var n atomic.Int64
	return func(err error) {
		switch k := n.Add(1); {
		case k <= Most:
			log(err)
		case k == Most+1:
			log(fmt.Errorf("%w (no more of these are logged after %d)", err, Most))
		}
	}
}
