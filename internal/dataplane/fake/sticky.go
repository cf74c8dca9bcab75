// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// client is whom a Service with session affinity remembers.
type client struct {
	service lb.ServiceName
	addr    netip.Addr
}

// remembered is where a client goes again, and when it last did.
type remembered struct {
	backend netip.AddrPort
	last    time.Time
}

// again returns the backend that a client has in r, if it is to go there again.
// d.mu is held.
func (d *Dataplane) again(c client, r *region, timeout time.Duration) (netip.AddrPort, bool) {
	was, ok := d.sticky[c]
	if !ok || d.opts.Now().Sub(was.last) >= timeout {
		return netip.AddrPort{}, false
	}
	takes := func(b lb.Backend) bool { return b.Addr == was.backend && b.Weight > 0 }
	return was.backend, slices.ContainsFunc(r.backends, takes)
}

// remember begins the timeout of c anew. d.mu is held.
func (d *Dataplane) remember(c client, backend netip.AddrPort) {
	d.sticky[c] = remembered{backend, d.opts.Now()}
}
