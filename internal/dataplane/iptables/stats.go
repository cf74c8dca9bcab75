// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Stats implements dataplane.StatsReader. Connections are as connection tracking had
// them a few seconds ago, at most; how many have ended is not known.
func (d *Dataplane) Stats() (dataplane.Stats, error) {
	live, err := d.feedback.live(d.pools)
	if err != nil {
		return dataplane.Stats{}, err
	}
	pools := d.pools()
	members := newCounter(pools).counts
	timed := map[lb.ServiceName]bool{}
	for _, p := range pools {
		timed[p.name] = timed[p.name] || p.table.Cost == algo.Time
	}
	out := dataplane.Stats{SymptomsLost: d.witness.lostSymptoms(), Rules: d.rules()}
	for name, backends := range members {
		for addr := range backends {
			s := dataplane.BackendStats{Service: name, Backend: addr}
			if c := live[name][addr]; c != nil {
				s.Live = c.live
			}
			if timed[name] {
				s.Latency = d.opts.Latency(addr)
			}
			out.Backends = append(out.Backends, s)
		}
		for addr, c := range live[name] {
			if backends[addr] == nil && c.live > 0 {
				out.Backends = append(out.Backends, dataplane.BackendStats{Service: name, Backend: addr, Live: c.live, Leaving: true})
			}
		}
	}
	slices.SortFunc(out.Backends, func(a, b dataplane.BackendStats) int {
		return cmp.Or(a.Service.Compare(b.Service), a.Backend.Compare(b.Backend))
	})
	return out, nil
}

// Live implements dataplane.LoadReader, with the same reservations as Stats.
func (d *Dataplane) Live(name lb.ServiceName) map[netip.AddrPort]uint64 {
	d.mu.Lock()
	svc := d.services[name]
	d.mu.Unlock()
	if svc == nil {
		return nil
	}
	read, err := d.feedback.liveOf(name, d.pools)
	if err != nil {
		read = nil // tick logs it
	}
	live := map[netip.AddrPort]uint64{}
	for _, sc := range scopes {
		for _, be := range svc.Pool(sc).Backends {
			live[be.Addr] = 0
		}
	}
	for addr, c := range read {
		if _, member := live[addr]; member || c.live > 0 {
			live[addr] = c.live
		}
	}
	return live
}

// scopes are both.
var scopes = []lb.Scope{lb.ScopeCluster, lb.ScopeLocal}

// pools returns all pools that callers get.
func (d *Dataplane) pools() []loaded {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []loaded
	for name, svc := range d.services {
		for _, sc := range scopes {
			if p := svc.Pool(sc); svc.uses(sc) {
				list = append(list, loaded{name, sc, keys(svc.Frontends), p.Backends, p.Table})
			}
		}
	}
	return list
}

var (
	_ dataplane.StatsReader = (*Dataplane)(nil)
	_ dataplane.LoadReader  = (*Dataplane)(nil)
)
