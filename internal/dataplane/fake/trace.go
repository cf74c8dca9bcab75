// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Flow is a new connection.
type Flow struct {
	Source netip.Addr
	To     netip.AddrPort
	Proto  lb.Proto
	Socket bool // translated at connect(), not on the packet path
}

// Action is what becomes of a Flow.
type Action string

// The actions. A flow that is no Service's business is passed on untouched.
const (
	Forward Action = "forward"
	Refuse  Action = "reject"
	Discard Action = "drop"
	Pass    Action = "not a service"
)

// Verdict is what would happen to a Flow.
type Verdict struct {
	Action     Action
	Service    lb.ServiceName
	Frontend   lb.Frontend
	Candidates []lb.Backend   // Forward: those that may be picked
	Backend    netip.AddrPort // Forward by Dial: the one that was
	Source     netip.Addr     // Forward by Dial: what the backend sees
	Masquerade bool           // Forward: Source is not the caller's; by Dial, counting hairpin
}

type counter struct {
	service lb.ServiceName
	scope   lb.Scope
}

type connections struct {
	service lb.ServiceName
	backend netip.AddrPort
}

func (c connections) of(be lb.Backend) bool { return be.Addr == c.backend }

// Trace tells what a Flow would meet. It picks nothing and counts nothing.
func (d *Dataplane) Trace(f Flow) Verdict {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, _, _ := d.lookup(f)
	return v
}

// Dial opens a connection, picks its backend, and closes it again.
func (d *Dataplane) Dial(f Flow) Verdict {
	v, end := d.Open(f)
	end()
	return v
}

// Open opens a connection and picks its backend. It lasts until end is called,
// which may be called again.
func (d *Dataplane) Open(f Flow) (v Verdict, end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, r, sc := d.lookup(f)
	switch v.Action {
	case Refuse, Discard:
		d.drops[string(v.Action)]++
	case Forward:
		be := d.pick(f, v.Service, r, sc)
		v.Backend = be.backend
		d.opened[be]++
		d.live[be]++
		v.Masquerade = v.Masquerade || !f.Socket && f.Source == v.Backend.Addr()
		v.Source = f.Source
		if v.Masquerade {
			v.Source = d.nodeAddr(lb.FamilyOf(f.Source))
		}
		return v, sync.OnceFunc(func() { d.end(be) })
	}
	return v, func() {}
}

// pick chooses a backend. d.mu is held.
func (d *Dataplane) pick(f Flow, svc lb.ServiceName, r *region, sc lb.Scope) connections {
	c := counter{svc, sc}
	in := algo.Input{
		Rand: [5]uint32{d.opts.Rand(), d.opts.Rand(), d.opts.Rand(), d.opts.Rand(), d.opts.Rand()},
		Seq:  d.seq[c],
		Hash: hashOf(r.balance, f),
		Load: func(i int) algo.Load {
			return algo.Load{Active: uint32(d.live[connections{svc, r.backends[i].Addr}])}
		},
	}
	d.seq[c]++
	return connections{svc, r.backends[algo.Pick(r.table, in)].Addr}
}

// end counts the end of a connection.
func (d *Dataplane) end(c connections) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live[c]--; d.live[c] == 0 {
		delete(d.live, c)
	}
}

// hashOf returns the hash of what b says should lead to one backend, under seed 0.
// Source ports of a fake are 0.
func hashOf(b lb.Balance, f Flow) uint32 {
	src := algo.HashPrefix(f.Source, b.Prefix4, b.Prefix6)
	switch b.HashKey {
	case lb.HashSourcePort:
		return algo.HashSourcePort(0, src, 0)
	case lb.HashTuple:
		return algo.HashTuple(0, src, 0, f.To, uint8(f.Proto))
	case lb.HashSource:
	}
	return algo.HashSource(0, src)
}

// lookup finds the record for f and what it says. d.mu is held.
func (d *Dataplane) lookup(f Flow) (Verdict, *region, lb.Scope) {
	rec, ok := d.records[lb.FrontendKey{Addr: f.To, Proto: f.Proto}]
	isNode := slices.Contains(d.opts.Nodes, f.To.Addr())
	if f.To.Addr().IsLoopback() && !slices.Contains(d.opts.Nodes, f.Source) {
		isNode = false // another machine's or pod's own loopback
	}
	if !ok && isNode {
		wildcard := netip.AddrPortFrom(lb.FamilyOf(f.To.Addr()).Unspecified(), f.To.Port())
		rec, ok = d.records[lb.FrontendKey{Addr: wildcard, Proto: f.Proto}]
	}
	if !ok || f.To.Addr().IsUnspecified() {
		return Verdict{Action: Pass}, nil, 0
	}
	pod := slices.ContainsFunc(d.opts.Pods, func(p netip.Prefix) bool { return p.Contains(f.Source) })
	sc := rec.frontend.Outside
	if pod || slices.Contains(d.opts.Nodes, f.Source) {
		sc = rec.frontend.Inside
	}
	r := rec.regions.cluster
	if sc == lb.ScopeLocal {
		r = rec.regions.local
	}
	v := Verdict{Service: rec.owner, Frontend: rec.frontend}
	switch {
	case r.table.N > 0:
		v.Action = Forward
		for _, be := range r.backends {
			if be.Weight > 0 {
				v.Candidates = append(v.Candidates, be)
			}
		}
		m := rec.frontend.Masquerade
		v.Masquerade = !f.Socket && (m == lb.MasqueradeAlways || m == lb.MasqueradeOffCluster && !pod)
	case r.empty == lb.Drop:
		v.Action = Discard
	default:
		v.Action = Refuse
	}
	return v, r, sc
}

// nodeAddr returns the address that masqueraded connections come from.
func (d *Dataplane) nodeAddr(fam lb.Family) netip.Addr {
	for _, a := range d.opts.Nodes {
		if lb.FamilyOf(a) == fam && !a.IsLoopback() {
			return a
		}
	}
	return netip.Addr{}
}

// Stats implements dataplane.StatsReader.
func (d *Dataplane) Stats() (dataplane.Stats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := dataplane.Stats{Drops: map[string]uint64{}}
	for c, n := range d.opened {
		s.Backends = append(s.Backends, dataplane.BackendStats{
			Service: c.service, Backend: c.backend, Opened: n, Closed: n - d.live[c],
		})
	}
	slices.SortFunc(s.Backends, func(a, b dataplane.BackendStats) int {
		return cmp.Or(a.Service.Compare(b.Service), a.Backend.Compare(b.Backend))
	})
	for reason, n := range d.drops {
		s.Drops[reason] = n
	}
	backends := 0
	for _, r := range d.installed {
		backends += len(r.cluster.backends) + len(r.local.backends)
	}
	s.Maps = []dataplane.MapUsage{
		{Name: "backends", Used: uint64(backends)},
		{Name: "frontends", Used: uint64(len(d.records))},
	}
	return s, nil
}
