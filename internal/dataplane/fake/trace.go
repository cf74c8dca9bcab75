// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Flow is a new connection.
type Flow struct {
	Source    netip.Addr
	To        netip.AddrPort
	Proto     lb.Proto
	Socket    bool   // of this node, translated at connect(), not on the packet path
	Connected bool   // a UDP socket that was connected
	Device    string // by which packets come
	Master    string // the bridge of Device, if it has one
}

// Action is what becomes of a Flow.
type Action string

// The actions. A flow that is no Service's business is passed on untouched.
const (
	Forward Action = "forward"
	Refuse  Action = "reject"
	Discard Action = "drop"
	Pass    Action = "not a service"
	Destroy Action = "destroy" // of a Conn: the socket is taken from its process
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
	v, c := d.Hold(f)
	if c == nil {
		return v, func() {}
	}
	return v, c.End
}

// Hold opens a connection, or a UDP flow, and picks its backend. The Conn is nil
// unless the Verdict is Forward.
func (d *Dataplane) Hold(f Flow) (Verdict, *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, on := d.open(f)
	if v.Action != Forward {
		return v, nil
	}
	return v, &Conn{dp: d, flow: f, on: on}
}

// open is Hold. d.mu is held.
func (d *Dataplane) open(f Flow) (Verdict, connections) {
	v, r, sc := d.lookup(f)
	switch v.Action {
	case Refuse, Discard:
		d.drops[string(v.Action)]++
		return v, connections{}
	case Pass, Destroy:
		return v, connections{}
	case Forward:
	}
	be := d.pick(f, v.Service, r, sc)
	v.Backend = be.backend
	d.opened[be]++
	d.live[be]++
	v.Masquerade = v.Masquerade || !f.Socket && f.Source == v.Backend.Addr()
	v.Source = f.Source
	if v.Masquerade {
		v.Source = d.nodeAddr(lb.FamilyOf(f.Source))
	}
	return v, be
}

// pick chooses a backend: the one that the client had, or another one, which is
// remembered. d.mu is held.
func (d *Dataplane) pick(f Flow, svc lb.ServiceName, r *region, sc lb.Scope) connections {
	timeout := d.installed[svc].terms.Affinity
	if timeout == 0 {
		return d.balance(f, svc, r, sc)
	}
	who := client{svc, f.Source}
	on := connections{service: svc}
	if was, ok := d.again(who, r, timeout); ok {
		on.backend = was
		if d.avoids(on) { // this connection passes by, and the client keeps what it has
			return d.balance(f, svc, r, sc)
		}
	} else {
		on = d.balance(f, svc, r, sc)
	}
	d.remember(who, on.backend)
	return on
}

// balance asks the table. d.mu is held.
func (d *Dataplane) balance(f Flow, svc lb.ServiceName, r *region, sc lb.Scope) connections {
	c := counter{svc, sc}
	in := algo.Input{
		Rand: [5]uint32{d.opts.Rand(), d.opts.Rand(), d.opts.Rand(), d.opts.Rand(), d.opts.Rand()},
		Seq:  d.seq[c],
		Hash: hashOf(r.balance, f),
		Load: func(i int) algo.Load {
			return algo.Load{Active: uint32(d.live[connections{svc, r.backends[i].Addr}])}
		},
	}
	i, turns := d.calm(svc, r, in, algo.Pick(r.table, in))
	d.seq[c] += 1 + turns
	return connections{svc, r.backends[i].Addr}
}

// end counts the end of a connection. d.mu is held.
func (d *Dataplane) end(c connections) {
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

// record finds the frontend for f. d.mu is held.
func (d *Dataplane) record(f Flow) (record, bool) {
	to := f.To.Addr()
	if to.IsUnspecified() {
		return record{}, false
	}
	if rec, ok := d.records[lb.FrontendKey{Addr: f.To, Proto: f.Proto}]; ok {
		return rec, true
	}
	switch {
	case !slices.Contains(d.opts.Nodes, to) || !d.opts.NodePorts.Serves(to, d.node):
		return record{}, false
	case to.IsLoopback() && !slices.Contains(d.opts.Nodes, f.Source):
		return record{}, false // another machine's or pod's own loopback
	}
	wildcard := netip.AddrPortFrom(lb.FamilyOf(to).Unspecified(), f.To.Port())
	rec, ok := d.records[lb.FrontendKey{Addr: wildcard, Proto: f.Proto}]
	return rec, ok
}

// hasClusterIP tells whether addr is the cluster IP of a Service. d.mu is held.
func (d *Dataplane) hasClusterIP(addr netip.Addr) bool {
	for key, rec := range d.records {
		if key.Addr.Addr() == addr && rec.frontend.Type == lb.ClusterIP {
			return true
		}
	}
	return false
}

// isPod tells whether f's packets are those of a pod. d.mu is held.
func (d *Dataplane) isPod(f Flow) bool {
	in := func(p netip.Prefix) bool { return p.Contains(f.Source) }
	return slices.ContainsFunc(d.opts.Local.PodRanges(d.node), in) || d.opts.Local.PodDevice(f.Device, f.Master)
}

// masquerades tells what m means for the packets of f, whose sender is a pod or not.
// d.mu is held.
func (d *Dataplane) masquerades(m lb.Masquerade, f Flow, pod bool) bool {
	switch m {
	case lb.MasqueradeAlways:
		return true
	case lb.MasqueradeOffCluster:
		return !pod && d.opts.Local.Knows(lb.FamilyOf(f.To.Addr()), d.node)
	case lb.MasqueradeNever:
	}
	return false
}

// lookup finds the record for f and what it says. d.mu is held.
func (d *Dataplane) lookup(f Flow) (Verdict, *region, lb.Scope) {
	rec, ok := d.record(f)
	switch {
	case !ok && d.hasClusterIP(f.To.Addr()):
		return Verdict{Action: Refuse}, nil, 0
	case !ok:
		return Verdict{Action: Pass}, nil, 0
	}
	v := Verdict{Service: rec.owner, Frontend: rec.frontend}
	in := func(p netip.Prefix) bool { return p.Contains(f.Source) }
	if rec.frontend.Ranged && !slices.ContainsFunc(rec.regions.terms.SourceRanges, in) {
		v.Action = Discard
		return v, nil, 0
	}
	pod := d.isPod(f)
	sc := rec.frontend.Outside
	if pod || f.Socket {
		sc = rec.frontend.Inside
	}
	r := rec.regions.cluster
	if sc == lb.ScopeLocal {
		r = rec.regions.local
	}
	switch {
	case r.table.N > 0:
		v.Action = Forward
		for _, be := range r.backends {
			if be.Weight > 0 {
				v.Candidates = append(v.Candidates, be)
			}
		}
		v.Masquerade = !f.Socket && d.masquerades(rec.frontend.Masquerade, f, pod)
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
	s := dataplane.Stats{Drops: map[string]uint64{}, SymptomsLost: d.symptomsLost}
	for c, n := range d.opened {
		s.Backends = append(s.Backends, dataplane.BackendStats{
			Service: c.service, Backend: c.backend, Live: d.live[c], Counted: true, Opened: n, Closed: n - d.live[c], Answered: n,
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
