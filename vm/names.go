package vm

import (
	"context"
	"time"

	"vmm/guest-images/agent"
)

// namesEvery is how often the host is asked how it looks names up. Servers that are other
// ones need no more: the gateway asks them from then on.
const namesEvery = 5 * time.Second

// followNames has the guest ask its DHCP server again when the host's search domains have
// changed, until ctx ends.
func (v *VM) followNames(ctx context.Context) {
	g := v.nets.gateway()
	if g == nil || v.cfg.NoAgent {
		return
	}
	t := time.NewTicker(namesEvery)
	defer t.Stop()
	for told := g.HostNames(); ; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := g.HostNames()
		if now.Equal(told) {
			continue
		}
		try, end := context.WithTimeout(ctx, setupTimeout)
		err := v.Ready(try)
		if err == nil {
			err = v.Agent().Setup(try, &agent.Setup{Now: time.Now(), Renew: true})
		}
		if end(); err == nil { // else it is tried again
			told = now
		}
	}
}
