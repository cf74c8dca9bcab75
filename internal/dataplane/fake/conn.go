// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Conn is a connection, or a UDP flow, that lasts.
type Conn struct {
	dp   *Dataplane
	flow Flow

	// Guarded by dp.mu.
	on    connections
	ended bool
}

// End ends the connection. It may be called again.
func (c *Conn) End() {
	c.dp.mu.Lock()
	defer c.dp.mu.Unlock()
	if !c.ended {
		c.ended = true
		c.dp.end(c.on)
	}
}

// Send tells what becomes of the next packet of c. TCP stays with its backend,
// whatever becomes of it, unless the Service resets what is gone. UDP moves when its
// backend is gone, and a socket that is connected to it is destroyed.
func (c *Conn) Send() Verdict {
	c.dp.mu.Lock()
	defer c.dp.mu.Unlock()
	stays := Verdict{Action: Forward, Service: c.on.service, Backend: c.on.backend}
	installed, known := c.dp.installed[c.on.service]
	gone := !known || !installed.serves(c.on.backend)
	resets := known && installed.terms.Reset
	switch {
	case c.ended:
		return Verdict{Action: Destroy}
	case !gone, c.flow.Proto == lb.TCP && !resets:
		return stays
	case c.flow.Proto == lb.TCP, c.flow.Socket && c.flow.Connected:
		c.ended = true
		c.dp.end(c.on)
		return Verdict{Action: Destroy}
	}
	c.dp.end(c.on)
	v, on := c.dp.open(c.flow)
	c.on, c.ended = on, v.Action != Forward
	return v
}

// serves tells whether backend may go on with what it has.
func (r regions) serves(backend netip.AddrPort) bool {
	is := func(b lb.Backend) bool { return b.Addr == backend }
	return slices.ContainsFunc(r.cluster.backends, is) || slices.ContainsFunc(r.local.backends, is) ||
		slices.Contains(r.terms.Draining, backend)
}
