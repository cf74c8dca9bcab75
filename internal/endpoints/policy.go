// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// candidate is an endpoint of one port: what the policies choose from.
type candidate struct {
	addr   netip.AddrPort
	zones  zoneSet
	flags  flags
	weight uint16
}

// gather returns the endpoints of the port and family that name says, sorted by
// address, each address once.
func gather(name lb.ServiceName, from []*slice, ws weights) []candidate {
	n := 0
	for _, s := range from {
		n += len(s.endpoints)
	}
	cs := make([]candidate, 0, n)
	for _, s := range from {
		if s.family != name.Family {
			continue
		}
		for _, p := range s.ports {
			if p.name != name.Port || p.proto != name.Proto {
				continue
			}
			for i := range s.endpoints {
				e := &s.endpoints[i]
				cs = append(cs, candidate{netip.AddrPortFrom(e.addr, p.port), e.zones, e.flags, ws.of(s, e)})
			}
		}
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	return dedupe(cs)
}

// dedupe keeps one of each run of equal addresses. A pod's address may be used
// again before the pod is gone, so the one that is not terminating wins, then the
// ready one, then the serving one, then the first.
func dedupe(cs []candidate) []candidate {
	out := cs[:0]
	for _, c := range cs {
		last := len(out) - 1
		switch {
		case last < 0 || out[last].addr != c.addr:
			out = append(out, c)
		case rank(c.flags) > rank(out[last].flags):
			out[last] = c
		}
	}
	return out
}

func rank(f flags) int {
	r := 0
	if !f.has(terminating) {
		r += 4
	}
	if f.has(ready) {
		r += 2
	}
	if f.has(serving) {
		r++
	}
	return r
}

// topology is which endpoints of the cluster pool this node prefers.
type topology uint8

const (
	anywhere topology = iota
	sameZone
	sameNode
)

// topologyOf reads the hints of the ready endpoints. It is all or nothing: one
// ready endpoint without a hint, or none for here, and that kind is ignored. An
// endpoint of weight 0 takes no connection, so it is none for here: a zone whose
// endpoints are all drained uses those of others.
func topologyOf(cs []candidate, zone string) topology {
	readyOnes := 0
	allNode, allZone := true, true
	hereNode, hereZone := false, false
	for _, c := range cs {
		if !c.flags.has(ready) {
			continue
		}
		readyOnes++
		allNode = allNode && c.flags.has(hasNodeHints)
		hereNode = hereNode || c.weight > 0 && c.flags.has(hintsThisNode)
		allZone = allZone && !c.zones.empty()
		hereZone = hereZone || c.weight > 0 && zone != "" && c.zones.has(zone)
	}
	switch {
	case readyOnes == 0:
		return anywhere
	case allNode && hereNode:
		return sameNode
	case allZone && hereZone:
		return sameZone
	}
	return anywhere
}

// clusterPool returns the ready endpoints that the topology prefers; without a
// ready one, those that still serve while they terminate. A ready one of weight 0 is
// a ready one: who drains everything wants a refusal, not what is about to go.
func clusterPool(cs []candidate, zone string) []lb.Backend {
	t := topologyOf(cs, zone)
	bs := choose(cs, func(c candidate) bool {
		return c.flags.has(ready) && (t == anywhere ||
			t == sameNode && c.flags.has(hintsThisNode) ||
			t == sameZone && c.zones.has(zone))
	})
	if len(bs) == 0 {
		bs = choose(cs, func(c candidate) bool { return c.flags.fallback() })
	}
	return bs
}

// localPool is clusterPool for the endpoints of this node; hints do not matter.
func localPool(cs []candidate) []lb.Backend {
	bs := choose(cs, func(c candidate) bool { return c.flags.has(ready | local) })
	if len(bs) == 0 {
		bs = choose(cs, func(c candidate) bool { return c.flags.has(local) && c.flags.fallback() })
	}
	return bs
}

// usableElsewhere tells whether some endpoint of another node could take new
// connections.
func usableElsewhere(cs []candidate) bool {
	return slices.ContainsFunc(cs, func(c candidate) bool {
		return !c.flags.has(local) && c.weight > 0 && (c.flags.has(ready) || c.flags.fallback())
	})
}

func choose(cs []candidate, want func(candidate) bool) []lb.Backend {
	n := 0
	for _, c := range cs {
		if want(c) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	bs := make([]lb.Backend, 0, n)
	for _, c := range cs {
		if want(c) {
			bs = append(bs, lb.Backend{Addr: c.addr, Weight: c.weight, Local: c.flags.has(local)})
		}
	}
	return bs
}
