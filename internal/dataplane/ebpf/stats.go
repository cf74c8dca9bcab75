// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// reasonNames are the names of enum reason in metrics. They never change.
var reasonNames = map[lbReason]string{
	lbReasonREASON_NO_BACKEND_REJECT: "no_backend_reject",
	lbReasonREASON_NO_BACKEND_DROP:   "no_backend_drop",
	lbReasonREASON_CONN_TABLE_FULL:   "connection_table_full",
	lbReasonREASON_NO_SNAT_PORT:      "no_source_port",
	lbReasonREASON_NO_SNAT_ADDRESS:   "no_source_address",
	lbReasonREASON_FRAGMENT:          "fragment_without_first",
	lbReasonREASON_MALFORMED:         "malformed_packet",
	lbReasonREASON_REWRITE:           "packet_rewrite_failed",
	lbReasonREASON_SOCK_STATE:        "socket_state_memory",
	lbReasonREASON_UDP_FLOWS_FULL:    "udp_flow_table_full",
	lbReasonREASON_INTERNAL:          "internal_inconsistency",
	lbReasonREASON_SOURCE_RANGE:      "source_range",
	lbReasonREASON_UNKNOWN_PORT:      "unknown_port",
}

// Stats implements dataplane.StatsReader. Counters are read in place.
func (d *Dataplane) Stats() (dataplane.Stats, error) {
	drops, err := d.maps.drops()
	if err != nil {
		return dataplane.Stats{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := dataplane.Stats{
		Backends: make([]dataplane.BackendStats, 0, d.backendIDs.used()),
		Services: make(map[lb.ServiceName]dataplane.Counts, len(d.services)),
		Drops:    drops,
		Maps:     d.usage(),

		Corrections:  d.recounted.corrections,
		SymptomsLost: d.symptomsLost(),
	}
	total := d.past
	add := func(name lb.ServiceName, id uint32) (had counts) {
		b := d.backendStats(name, id)
		s.Backends = append(s.Backends, b)
		had = counts{Opened: b.Opened, Closed: b.Closed, Failed: b.Failed}
		total.add(had)
		return had
	}
	for _, name := range d.serviceNames() {
		svc := d.services[name]
		sum := svc.past
		for sc := range scopes {
			for _, id := range svc.ids[sc] {
				if lb.Scope(sc) == lb.ScopeLocal && slices.Contains(svc.ids[lb.ScopeCluster], id) {
					continue
				}
				sum.add(add(name, id))
			}
		}
		for _, id := range svc.leaving {
			sum.add(add(name, id))
		}
		s.Services[name] = dataplane.Counts(sum)
	}
	for _, o := range d.orphans {
		for _, id := range o.service.leaving {
			add(o.name, id)
		}
	}
	s.Total = dataplane.Counts(total)
	return s, nil
}

func (d *Dataplane) backendStats(name lb.ServiceName, id uint32) dataplane.BackendStats {
	had := d.maps.countsOf(id)
	latency, _ := d.maps.latencyAt(id)
	return dataplane.BackendStats{
		Latency: time.Duration(latency) * time.Microsecond,
		Service: name,
		Backend: d.maps.addrPort(id),
		Live:    had.Opened - min(had.Opened, had.Closed),
		Counted: true,
		Opened:  had.Opened,
		Closed:  had.Closed,
		Failed:  had.Failed,

		Answered: atomic.LoadUint64(&d.maps.suspects[id].Answered),
		Leaving:  d.maps.backends[id].State > uint8(lbBackendStateBACKEND_ACTIVE),
	}
}

// usage returns the fill of each table. Those of connections are as of the last
// sweep.
func (d *Dataplane) usage() []dataplane.MapUsage {
	max := func(name string) uint64 { return uint64(d.maps.byName[name].MaxEntries()) }
	indexed := func(name string) uint64 { return max(name) - 1 } // element 0 is not used
	return []dataplane.MapUsage{
		{Name: lbMapServices, Used: uint64(d.serviceIDs.used()), Max: indexed(lbMapServices)},
		{Name: lbMapFrontends, Used: uint64(len(d.frontends)), Max: max(lbMapFrontends)},
		{Name: lbMapBackends, Used: uint64(d.backendIDs.used()), Max: indexed(lbMapBackends)},
		{Name: lbMapSlots, Used: uint64(d.regions.inUse), Max: indexed(lbMapSlots)},
		{Name: lbMapConns, Used: d.swept.entries, Max: max(lbMapConns)},
		{Name: lbMapUdpFlows, Used: 2 * d.swept.flows, Max: max(lbMapUdpFlows)},
	}
}

// drops adds up the reasons over all CPUs.
func (m *maps) drops() (map[string]uint64, error) {
	sums := map[string]uint64{}
	for reason, name := range reasonNames {
		var perCPU []uint64
		if err := m.byName[lbMapDrops].Lookup(uint32(reason), &perCPU); err != nil {
			return nil, fmt.Errorf("read map %s: %w", lbMapDrops, err)
		}
		for _, n := range perCPU {
			sums[name] += n
		}
	}
	return sums, nil
}
