// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// candidate is an endpoint of one port: what is selected from.
type candidate struct {
	addr   netip.AddrPort
	zones  zoneSet
	weight uint16
	flags  flags
}

// wish is what a selection depends on, apart from the endpoints.
type wish struct {
	zone           string // of this node; empty: not known
	cluster, local bool   // the pools that the frontends use
	draining       bool   // whether it matters which endpoints drain
}

// selection is what becomes of the endpoints of one port on this node.
type selection struct {
	cluster, local lb.Pool
	draining       []netip.AddrPort // in no pool that is used, but serving
}

// choose says what new connections may go to, and what keeps those it has. cs are
// all endpoints of one port and family, sorted, each address once; the result is in
// the same order. A pool that w does not use is left empty.
//
// The cluster pool has the ready endpoints that topology prefers, the local pool the
// ready ones of this node. Without a ready one each pool has, for itself, those that
// still serve while they terminate. A ready one of weight 0 is a ready one: who
// drains everything wants a refusal, not what is about to go. A local pool that takes
// no connections drops them if another node would take them, as the sender should
// soon go there, and refuses them if none would.
// Source: Kubernetes 1.37 pkg/proxy/topology.go; weights are ours.
func choose(cs []candidate, w wish) (s selection) {
	count := survey(cs, w.zone)
	cluster, n := count.clusterRule(w.zone)
	if !w.cluster {
		cluster, n = nobody, 0
	}
	s.cluster.Backends = collect(cs, cluster, n)
	here, m := count.localRule()
	if !w.local {
		here, m = nobody, 0
	}
	s.local.Backends = collect(cs, here, m)
	if w.local && count.usableElsewhere {
		s.local.Empty = lb.Drop
	}
	if w.draining {
		for i := range cs {
			if c := &cs[i]; c.flags.has(serving) && !cluster.takes(c) && !here.takes(c) {
				s.draining = append(s.draining, c.addr)
			}
		}
	}
	return s
}

// rule says which endpoints are in a pool: those that have all flags of need, and
// are hinted for zone unless that is empty.
type rule struct {
	need flags
	zone string
}

// nobody is the rule of a pool that is not used: no endpoint has the flag.
var nobody = rule{need: never}

func (r rule) takes(c *candidate) bool {
	return c.flags.has(r.need) && (r.zone == "" || c.zones.has(r.zone))
}

// counts is what a selection needs to know of all endpoints before it looks at each.
type counts struct {
	ready, fallback           int
	localReady, localFallback int

	// Of the ready ones: how many have hints, and how many are hinted for here.
	nodeHints, zoneHints int
	forNode, forZone     int
	// Whether one of those that are hinted for here takes connections.
	nodeTakes, zoneTakes bool

	usableElsewhere bool // some endpoint of another node takes connections
}

func survey(cs []candidate, zone string) (n counts) {
	for i := range cs {
		c := &cs[i]
		isLocal := c.flags.has(local)
		if !c.flags.has(ready) && !c.flags.fallback() {
			continue
		}
		if !isLocal && c.weight > 0 {
			n.usableElsewhere = true
		}
		if c.flags.fallback() {
			n.fallback++
			if isLocal {
				n.localFallback++
			}
		}
		if c.flags.has(ready) {
			n.countReady(c, zone)
		}
	}
	return n
}

func (n *counts) countReady(c *candidate, zone string) {
	n.ready++
	if c.flags.has(local) {
		n.localReady++
	}
	if c.flags.has(hasNodeHints) {
		n.nodeHints++
	}
	if c.flags.has(hintsThisNode) {
		n.forNode++
		n.nodeTakes = n.nodeTakes || c.weight > 0
	}
	if c.zones.empty() {
		return
	}
	n.zoneHints++
	if zone != "" && c.zones.has(zone) {
		n.forZone++
		n.zoneTakes = n.zoneTakes || c.weight > 0
	}
}

// clusterRule returns who is in the cluster pool, and how many these are. Topology is
// all or nothing: one ready endpoint without a hint, or none for here, and that kind
// of hint is ignored. An endpoint of weight 0 takes no connection, so it is none for
// here: a zone whose endpoints are all drained uses those of others.
func (n *counts) clusterRule(zone string) (rule, int) {
	switch {
	case n.ready == 0:
		return rule{need: serving | terminating}, n.fallback
	case n.nodeHints == n.ready && n.nodeTakes:
		return rule{need: ready | hintsThisNode}, n.forNode
	case n.zoneHints == n.ready && n.zoneTakes:
		return rule{need: ready, zone: zone}, n.forZone
	}
	return rule{need: ready}, n.ready
}

// localRule is clusterRule for the endpoints of this node; hints do not matter.
func (n *counts) localRule() (rule, int) {
	if n.localReady == 0 {
		return rule{need: local | serving | terminating}, n.localFallback
	}
	return rule{need: local | ready}, n.localReady
}

// collect returns the n endpoints that r takes.
func collect(cs []candidate, r rule, n int) []lb.Backend {
	if n == 0 {
		return nil
	}
	bs := make([]lb.Backend, 0, n)
	for i := range cs {
		if c := &cs[i]; r.takes(c) {
			bs = append(bs, lb.Backend{Addr: c.addr, Weight: c.weight, Local: c.flags.has(local)})
		}
	}
	return bs
}
