// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Live implements dataplane.LoadReader. Counters are read in place.
func (d *Dataplane) Live(name lb.ServiceName) map[netip.AddrPort]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	svc := d.services[name]
	if svc == nil {
		return nil
	}
	live := map[netip.AddrPort]uint64{}
	for id := range d.members(svc) {
		live[d.maps.addrPort(id)] = d.maps.liveOf(id)
	}
	return live
}

var _ dataplane.LoadReader = (*Dataplane)(nil)
