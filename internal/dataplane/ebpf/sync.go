// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// scopes is how many pools a Service has.
const scopes = int(lbScopeSCOPES)

// service is what the agent remembers of a Service beyond what the kernel's
// tables tell.
type service struct {
	id        uint32
	frontends []lbFrontendKey
	pools     [scopes]region
	ids       [scopes][]uint32   // backends, in the order of the pools
	committed *dataplane.Service // nil: by another agent
	leaving   []uint32           // backends that still have connections
	past      counts             // of backends that were freed, see begin
	ranges    []netip.Prefix     // in the kernel's table, sorted
	reset     bool               // connections to backends that are gone are reset
}

// Sync implements dataplane.Dataplane.
func (d *Dataplane) Sync(ctx context.Context, delta dataplane.Delta) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var failed dataplane.SyncError
	full := false
	keep := make(map[lb.ServiceName]bool)
	for _, svc := range delta.Put {
		keep[svc.Name] = true
		if err := d.apply(svc); err != nil {
			failed.Fail(svc.Name, err)
			full = full || errors.Is(err, dataplane.ErrFull)
		}
		d.noteClusterIPs(svc)
	}
	gone := delta.Delete
	if delta.Full {
		gone = nil
		for name := range d.services {
			if !keep[name] {
				gone = append(gone, name)
			}
		}
		failed.Other = d.removeStray()
	}
	for _, name := range gone {
		if keep[name] {
			continue
		}
		if err := d.remove(name); err != nil {
			failed.Fail(name, err)
		}
	}
	full = d.closeClusterIPs(&failed) || full
	if delta.Full && !d.complete {
		err := d.removeOldLayouts()
		d.complete = err == nil
		failed.Other = errors.Join(failed.Other, err)
	}
	d.wakeJanitor(full)
	d.wakeLeftovers()
	return errors.Join(failed.OrNil(), ctx.Err())
}

// change is a Service's next state, with everything reserved that it needs.
type change struct {
	svc   *service
	pools [scopes]poolChange
	fresh []uint32 // backends that were reserved
	back  []uint32 // leaving backends that return
}

// poolChange is the next content of one pool.
type poolChange struct {
	same    bool // the kernel has it already
	region  region
	content []lbSlot
	ids     []uint32
}

// apply makes the kernel serve want. On an error the Service keeps what it had.
func (d *Dataplane) apply(want *dataplane.Service) (err error) {
	svc, known := d.services[want.Name]
	if !known {
		if svc, err = d.newService(want.Name); err != nil {
			return err
		}
	}
	var early []lb.FrontendKey
	ranges := svc.ranges
	c, err := d.plan(svc, want)
	if err == nil {
		early = d.answered(c, want)
		err = d.widenRanges(svc, want.Terms.SourceRanges)
	}
	if err == nil {
		if !known {
			d.commitPools(c)
			d.setTerms(svc, want)
		}
		err = d.setFrontends(svc, want)
	}
	if err != nil {
		if known { // otherwise the pools were committed, and forget retires them
			d.abandon(c)
			err = errors.Join(err, d.narrowRanges(svc, ranges))
		} else {
			err = errors.Join(err, d.forget(want.Name, svc))
		}
		return err
	}
	if known {
		d.commitPools(c)
		d.setTerms(svc, want)
	}
	svc.committed = want
	d.left.early = append(d.left.early, early...)
	d.drain(want.Name, svc, want.Terms)
	d.noteWeights(svc, want)
	return d.narrowRanges(svc, want.Terms.SourceRanges)
}

// noteWeights remembers, for people, what the tables of svc were made from.
func (d *Dataplane) noteWeights(svc *service, want *dataplane.Service) {
	for sc := range lb.Scope(scopes) {
		backends := want.Pool(sc).Backends
		for i, id := range svc.ids[sc] { // none, or as many as there are backends
			if w := &d.maps.weights[id]; *w != uint64(backends[i].Weight) {
				d.maps.wrote()
				*w = uint64(backends[i].Weight)
			}
		}
	}
}

// newService reserves an id and gives it the name.
func (d *Dataplane) newService(name lb.ServiceName) (*service, error) {
	v, err := serviceNameOf(name)
	if err != nil {
		return nil, err
	}
	id, err := d.serviceIDs.reserve(1)
	if err != nil {
		return nil, err
	}
	if err := d.maps.put(d.maps.names(), id[0], v); err != nil {
		d.serviceIDs.release(id[0])
		return nil, err
	}
	h := fnv.New64a()
	h.Write([]byte(d.opts.NodeName))
	h.Write(v[:])
	start := uint32(h.Sum64() >> 32) // nodes start their turns at different backends
	d.maps.states[id[0]] = lbServiceState{Seq: [scopes]uint32{start, start}}
	svc := &service{id: id[0]}
	d.services[name] = svc
	return svc, nil
}

// plan reserves what want needs and renders its pools. On an error nothing stays
// reserved.
func (d *Dataplane) plan(svc *service, want *dataplane.Service) (*change, error) {
	c := &change{svc: svc}
	for sc := range c.pools {
		if err := d.planPool(c, lb.Scope(sc), want); err != nil {
			d.abandon(c)
			return nil, err
		}
	}
	return c, nil
}

func (d *Dataplane) planPool(c *change, sc lb.Scope, svc *dataplane.Service) (err error) {
	p, want := &c.pools[sc], svc.Pool(sc)
	word := d.maps.services[c.svc.id].Pool[sc]
	var backends []lb.Backend
	if want.Table.N > 0 { // otherwise nobody takes new connections
		backends = want.Backends
	}
	if len(backends) == 0 && want.Empty == lb.Reject { // what a pool without a region does
		p.same = word == 0
		return nil
	}
	if p.ids, err = d.resolve(c, sc, backends); err != nil {
		return err
	}
	p.content = render(svc.Balance, want, p.ids)
	n, old := uint32(len(p.ids)), d.content(c.svc, sc)
	if poolLen(word) == n && sameContent(old, p.content, n) {
		p.same = true
		return nil
	}
	p.region, err = d.reserveRegion(uint32(len(p.content)))
	return err
}

// reserveRegion takes a run of slots; when none is free in one piece, the free
// ones are joined first.
func (d *Dataplane) reserveRegion(n uint32) (region, error) {
	g, err := d.regions.reserve(n)
	if err == nil {
		d.reserved = append(d.reserved, g)
		return g, nil
	}
	used := append(slices.Clone(d.reserved), d.retired.regions...)
	for _, svc := range d.services {
		for _, g := range svc.pools {
			if g.size > 0 {
				used = append(used, g)
			}
		}
	}
	d.regions.adopt(used)
	if g, err = d.regions.reserve(n); err == nil {
		d.reserved = append(d.reserved, g)
	}
	return g, err
}

// content returns the slots of a Service's present pool.
func (d *Dataplane) content(svc *service, sc lb.Scope) []lbSlot {
	g := svc.pools[sc]
	return d.maps.slots[g.base : g.base+g.size]
}

// resolve finds or reserves the ids of the wanted backends. Both sides are
// sorted by address, so what stays is found by walking along.
func (d *Dataplane) resolve(c *change, sc lb.Scope, want []lb.Backend) ([]uint32, error) {
	ids := make([]uint32, 0, len(want))
	old := c.svc.ids[sc]
	for _, b := range want {
		same := len(old) > 0 && d.maps.isAt(old[0], b.Addr)
		for !same && len(old) > 0 && d.maps.addrPort(old[0]).Compare(b.Addr) < 0 {
			old = old[1:]
			same = len(old) > 0 && d.maps.isAt(old[0], b.Addr)
		}
		if same {
			ids = append(ids, old[0])
			old = old[1:]
			continue
		}
		id, err := d.otherID(c, sc, b)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// otherID finds backend b in the Service's other pool, among those that are
// leaving, among those reserved before, or reserves an id for it.
func (d *Dataplane) otherID(c *change, sc lb.Scope, b lb.Backend) (uint32, error) {
	others := c.svc.ids[1-sc]
	i, ok := slices.BinarySearchFunc(others, b, func(id uint32, b lb.Backend) int {
		return d.maps.addrPort(id).Compare(b.Addr)
	})
	if ok {
		return others[i], nil
	}
	at := func(id uint32) bool { return d.maps.isAt(id, b.Addr) }
	if i := slices.IndexFunc(c.svc.leaving, at); i >= 0 {
		c.back = append(c.back, c.svc.leaving[i])
		return c.svc.leaving[i], nil
	}
	if sc != lb.ScopeCluster { // the cluster pool was resolved before
		if i := slices.IndexFunc(c.fresh, at); i >= 0 {
			return c.fresh[i], nil
		}
	}
	id, err := d.backendIDs.reserve(1)
	if err != nil {
		return 0, err
	}
	c.fresh = append(c.fresh, id[0])
	be := &d.maps.backends[id[0]]
	*be = lbBackend{
		Addr:    addrOf(b.Addr.Addr()),
		Port:    swap16(b.Addr.Port()),
		State:   uint8(lbBackendStateBACKEND_FREE),
		Gen:     be.Gen + 1,
		Service: c.svc.id,
		Place:   [scopes]uint16{noPlace, noPlace},
	}
	return id[0], nil
}

// commitPools writes backends, then tables, then the words that lead to them.
// Backends that are in no pool any more start to leave.
func (d *Dataplane) commitPools(c *change) {
	before, bounds := c.svc.ids, d.hasBounds(c.svc)
	for _, id := range append(c.fresh, c.back...) {
		d.setState(id, lbBackendStateBACKEND_ACTIVE)
	}
	for _, id := range c.fresh {
		d.maps.stats[id] = lbBackendStats{}
		d.maps.suspects[id] = lbSuspect{} // of whoever had the id before; none of its connections is left
	}
	d.seedLatency(c)
	for sc := range c.pools {
		d.commitPool(c, lb.Scope(sc))
	}
	d.reserved = d.reserved[:0]
	stays := d.marks.set(c.svc.ids)
	c.svc.leaving = slices.DeleteFunc(c.svc.leaving, stays)
	for _, id := range d.marks.without(before) {
		d.leave(c.svc, id)
	}
	if bounds || d.hasBounds(c.svc) {
		for _, ids := range before {
			for _, id := range ids {
				d.unplace(c.svc, id)
			}
		}
	}
}

// commitPool writes one pool, if it is another one.
func (d *Dataplane) commitPool(c *change, sc lb.Scope) {
	p := &c.pools[sc]
	if p.same {
		return
	}
	d.maps.wrote()
	if len(p.content) > 0 {
		p.content[headMore].Backend = d.resumeTurns(c.svc, sc, p)
		copy(d.maps.slots[p.region.base:], p.content)
		d.place(sc, p)
	}
	old := c.svc.pools[sc]
	c.svc.pools[sc], c.svc.ids[sc] = p.region, p.ids
	d.maps.storePool(c.svc.id, sc, poolWord(p.region.base, uint32(len(p.ids))))
	d.retired.add(old)
}

// members returns the backends of both pools.
func (d *Dataplane) members(svc *service) map[uint32]bool {
	set := make(map[uint32]bool)
	for sc := range svc.pools {
		for _, id := range svc.ids[sc] {
			set[id] = true
		}
	}
	return set
}

// leave stops giving connections to a backend; it keeps those it has.
func (d *Dataplane) leave(svc *service, id uint32) {
	delete(d.ripe, id)
	d.setPools(id, 0)
	if be := &d.maps.backends[id]; be.State == uint8(lbBackendStateBACKEND_ACTIVE) {
		d.setState(id, lbBackendStateBACKEND_LEAVING) // until its terms are known
	}
	svc.leaving = append(svc.leaving, id)
	d.draining[svc] = true
}

func (d *Dataplane) setState(id uint32, state lbBackendState) {
	if be := &d.maps.backends[id]; be.State != uint8(state) {
		d.maps.wrote()
		be.State = uint8(state)
	}
}

// abandon gives back what a change had reserved.
func (d *Dataplane) abandon(c *change) {
	if c == nil {
		return
	}
	d.backendIDs.release(c.fresh...)
	for _, p := range c.pools {
		d.regions.release(p.region)
	}
	d.reserved = d.reserved[:0]
}

// remove makes the kernel forget a Service. Its connections go on.
func (d *Dataplane) remove(name lb.ServiceName) error {
	svc, ok := d.services[name]
	if !ok {
		return nil
	}
	for len(svc.frontends) > 0 {
		if err := d.dropFrontend(svc, svc.frontends[0]); err != nil {
			return err
		}
		svc.frontends = svc.frontends[1:]
	}
	return d.forget(name, svc)
}

// forget retires the pools and the id of a Service that has no frontends.
func (d *Dataplane) forget(name lb.ServiceName, svc *service) error {
	members := d.members(svc)
	if err := d.narrowRanges(svc, nil); err != nil {
		return err
	}
	for sc := range svc.pools {
		d.maps.storePool(svc.id, lb.Scope(sc), 0)
		d.retired.add(svc.pools[sc])
		svc.pools[sc], svc.ids[sc] = region{}, nil
	}
	for id := range members {
		d.leave(svc, id)
		d.unplace(svc, id)
	}
	for _, id := range svc.leaving { // the Service is gone, not its backends: TCP goes on
		d.setLeft(name, id, lbBackendStateBACKEND_GONE)
	}
	if err := d.maps.remove(d.maps.names(), svc.id); err != nil {
		return fmt.Errorf("remove name: %w", err)
	}
	delete(d.services, name)
	d.orphans = append(d.orphans, orphan{name: name, service: svc})
	return nil
}

// removeStray removes frontends in the kernel that belong to no Service: what an
// agent left that was killed in between.
func (d *Dataplane) removeStray() error {
	owned := map[uint32]bool{}
	for _, svc := range d.services {
		owned[svc.id] = true
	}
	var errs []error
	for key, v := range d.frontends {
		if owned[v.Service] || v.Flags&uint8(lbFrontendFlagsFE_UNKNOWN) != 0 && d.clusterIPs[key.Addr] > 0 {
			continue
		}
		errs = append(errs, d.removeFrontend(key))
	}
	return errors.Join(errs...)
}

var _ dataplane.Dataplane = (*Dataplane)(nil)
var _ dataplane.StatsReader = (*Dataplane)(nil)
