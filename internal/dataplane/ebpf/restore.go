// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// restore reads what the kernel has: names, frontends, pools and backends. An
// agent that was killed at any point leaves a state that this can read; what it
// had not committed is free again.
func (d *Dataplane) restore() error {
	d.services = map[lb.ServiceName]*service{}
	d.frontends = map[lbFrontendKey]lbFrontend{}
	d.draining = map[*service]bool{}
	d.ajar = map[lbAddr]lb.ServiceName{}
	d.serviceIDs = newIDs(lbMapServices, len(d.maps.services))
	d.backendIDs = newIDs(lbMapBackends, len(d.maps.backends))
	d.regions = newRegions(len(d.maps.slots))
	byID, err := d.restoreServices()
	if err != nil {
		return err
	}
	if err := d.restoreFrontends(byID); err != nil {
		return err
	}
	d.restoreClusterIPs()
	d.restoreTranslated()
	if err := d.restoreRanges(byID); err != nil {
		return err
	}
	d.restoreRegions()
	d.restoreBackends(byID)
	d.begin()
	return d.fit()
}

// fit keeps of the arrays in memory what is in use, and lets more follow when it is needed.
func (d *Dataplane) fit() error {
	for o, next := range [...]uint32{ofService: d.serviceIDs.next, ofBackend: d.backendIDs.next, ofSlot: d.regions.next} {
		if err := d.maps.shrink(owner(o), next); err != nil {
			return err
		}
	}
	d.serviceIDs.grow = func(next uint32) error { return d.maps.grow(ofService, next) }
	d.backendIDs.grow = func(next uint32) error { return d.maps.grow(ofBackend, next) }
	d.regions.grow = func(next uint32) error { return d.maps.grow(ofSlot, next) }
	return nil
}

func (d *Dataplane) restoreServices() (map[uint32]*service, error) {
	var (
		id   uint32
		name serviceName
		used []uint32
		byID = map[uint32]*service{}
		it   = d.maps.names().Iterate()
	)
	for it.Next(&id, &name) {
		n, err := name.parse()
		if err != nil {
			return nil, fmt.Errorf("pinned map %s: id %d: %w", mapServiceNames, id, err)
		}
		byID[id] = &service{id: id}
		d.services[n] = byID[id]
		used = append(used, id)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read pinned map %s: %w", mapServiceNames, err)
	}
	d.serviceIDs.adopt(used)
	return byID, nil
}

// restoreFrontends reads which frontends there are. Those whose Service has no
// name stay until the first full Sync removes them.
func (d *Dataplane) restoreFrontends(byID map[uint32]*service) error {
	var (
		key lbFrontendKey
		v   lbFrontend
		it  = d.maps.frontends().Iterate()
	)
	for it.Next(&key, &v) {
		d.frontends[key] = v
		if svc := byID[v.Service]; svc != nil {
			svc.frontends = append(svc.frontends, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read pinned map %s: %w", lbMapFrontends, err)
	}
	return nil
}

// restoreRegions finds the regions that pools use. Their heads say how
// long they are.
func (d *Dataplane) restoreRegions() {
	var used []region
	for _, svc := range d.services {
		for sc := range svc.pools {
			word := d.maps.services[svc.id].Pool[sc]
			base := uint32(word)
			if base == 0 {
				continue
			}
			size, _ := ceilPow2(headOf(d.maps.slots[base:]).layout(poolLen(word)).end)
			svc.pools[sc] = region{base, size}
			for _, s := range d.maps.pool(svc.id, lb.Scope(sc)) {
				svc.ids[sc] = append(svc.ids[sc], s.Backend)
			}
			used = append(used, svc.pools[sc])
		}
	}
	d.regions.adopt(used)
}

// restoreBackends finds which backends are in use: those in pools, and those
// that left with connections. The latter belong to their Service as long as it
// has a name.
func (d *Dataplane) restoreBackends(byID map[uint32]*service) {
	members := map[uint32]bool{}
	for _, svc := range d.services {
		for id := range d.members(svc) {
			members[id] = true
		}
	}
	for _, svc := range d.services { // a kill may have come between a commit and this
		for sc := range lb.Scope(scopes) {
			d.replace(svc, sc)
		}
	}
	var used []uint32
	lost := &service{} // takes those whose Service is gone
	for i := range d.maps.backends {
		id, be := uint32(i), &d.maps.backends[i]
		switch {
		case members[id]:
			d.setState(id, lbBackendStateBACKEND_ACTIVE)
		case be.State == uint8(lbBackendStateBACKEND_FREE):
			continue
		case byID[be.Service] != nil:
			d.leave(byID[be.Service], id)
			d.unplace(byID[be.Service], id)
		default:
			be.Service = 0
			d.leave(lost, id)
		}
		used = append(used, id)
	}
	if len(lost.leaving) > 0 {
		d.orphans = append(d.orphans, orphan{service: lost})
	}
	d.backendIDs.adopt(used)
}

// serviceNames returns the names of all Services in order.
func (d *Dataplane) serviceNames() []lb.ServiceName {
	names := make([]lb.ServiceName, 0, len(d.services))
	for n := range d.services {
		names = append(names, n)
	}
	slices.SortFunc(names, lb.ServiceName.Compare)
	return names
}

// replace tells the backends of a pool where they are, as a commit does.
func (d *Dataplane) replace(svc *service, sc lb.Scope) {
	bounds := d.maps.head(svc.id, sc).has(howBounds)
	for i, id := range svc.ids[sc] {
		if bounds {
			d.setPlace(id, sc, uint16(i))
		}
		d.unplace(svc, id)
	}
}
