// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// errTaken is wrapped when another Service has a frontend and keeps it.
var errTaken = errors.New("frontend belongs to another service")

// put makes svc what it says. On an error nothing has changed.
func (d *Dataplane) put(
	svc *dataplane.Service, next map[lb.ServiceName]*dataplane.Service, gone map[lb.ServiceName]bool,
) error {
	if err := d.checkOwners(svc, next, gone); err != nil {
		return err
	}
	d.mu.Lock()
	old, had := d.services[svc.Name], d.installed[svc.Name]
	d.mu.Unlock()
	now := regions{terms: had.terms}
	if now.terms == nil || !now.terms.Equal(svc.Terms) {
		now.terms = &svc.Terms
	}
	var err error
	if now.cluster, err = d.fill(svc, lb.ScopeCluster, old, had.cluster); err != nil {
		return err
	}
	if now.local, err = d.fill(svc, lb.ScopeLocal, old, had.local); err != nil {
		return err
	}
	var undo undo
	for _, fe := range svc.Frontends {
		if err := d.point(record{fe, svc.Name, now}, &undo); err != nil {
			return d.rollback(undo, err)
		}
	}
	if old != nil {
		for _, key := range leftBehind(old, svc) {
			if err := d.unpoint(svc.Name, key, &undo); err != nil {
				return d.rollback(undo, err)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.services[svc.Name], d.installed[svc.Name] = svc, now
	d.forgetBackends(svc)
	return nil
}

// remove takes a Service away. On an error nothing has changed.
func (d *Dataplane) remove(name lb.ServiceName) error {
	d.mu.Lock()
	old := d.services[name]
	d.mu.Unlock()
	if old == nil {
		return nil
	}
	var undo undo
	for _, fe := range old.Frontends {
		if err := d.unpoint(name, fe.FrontendKey, &undo); err != nil {
			return d.rollback(undo, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.services, name)
	delete(d.installed, name)
	d.forgetBackends(&dataplane.Service{Name: name})
	maps.DeleteFunc(d.sticky, func(c client, _ remembered) bool { return c.service == name })
	return nil
}

// checkOwners fails if a frontend of svc is another Service's, unless that one
// gives it up in the same delta.
func (d *Dataplane) checkOwners(
	svc *dataplane.Service, next map[lb.ServiceName]*dataplane.Service, gone map[lb.ServiceName]bool,
) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fe := range svc.Frontends {
		rec, ok := d.records[fe.FrontendKey]
		if !ok || rec.owner == svc.Name || gone[rec.owner] {
			continue
		}
		owner := next[rec.owner]
		if owner == nil || hasFrontend(owner, fe.FrontendKey) {
			return fmt.Errorf("%s: %w: %s", fe.FrontendKey, errTaken, rec.owner)
		}
	}
	return nil
}

// fill writes a pool to a fresh region, or returns the old one if it is the same.
func (d *Dataplane) fill(
	svc *dataplane.Service, sc lb.Scope, old *dataplane.Service, had *region,
) (*region, error) {
	pool := svc.Pool(sc)
	if old != nil && old.Balance == svc.Balance && samePool(old.Pool(sc), pool) {
		return had, nil
	}
	r := &region{empty: pool.Empty, balance: svc.Balance}
	for _, be := range pool.Backends {
		w := Write{svc.Name, WriteBackend, be.Addr.String()}
		if err := d.write(w, func() { r.backends = append(r.backends, be) }); err != nil {
			return nil, err
		}
	}
	w := Write{svc.Name, WriteTable, fmt.Sprintf("scope %d", sc)}
	err := d.write(w, func() {
		r.table = pool.Table
		r.table.Alias, r.table.Order = slices.Clone(pool.Table.Alias), slices.Clone(pool.Table.Order)
		r.table.Factors, r.table.Starters = slices.Clone(pool.Table.Factors), slices.Clone(pool.Table.Starters)
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// undo is how to take back what point and unpoint did.
type undo []func()

func (d *Dataplane) rollback(u undo, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range slices.Backward(u) {
		f()
	}
	return err
}

// point makes rec what its key leads to.
func (d *Dataplane) point(rec record, u *undo) error {
	key := rec.frontend.FrontendKey
	d.mu.Lock()
	was, had := d.records[key]
	d.mu.Unlock()
	if had && was == rec {
		return nil
	}
	w := Write{rec.owner, WriteFrontend, key.String()}
	if err := d.write(w, func() { d.records[key] = rec }); err != nil {
		return err
	}
	*u = append(*u, func() { d.restore(key, was, had) })
	return nil
}

// unpoint removes a frontend of owner; it may have passed to another Service.
func (d *Dataplane) unpoint(owner lb.ServiceName, key lb.FrontendKey, u *undo) error {
	d.mu.Lock()
	was, had := d.records[key]
	d.mu.Unlock()
	if !had || was.owner != owner {
		return nil
	}
	w := Write{owner, WriteFrontend, key.String()}
	if err := d.write(w, func() { delete(d.records, key) }); err != nil {
		return err
	}
	*u = append(*u, func() { d.restore(key, was, true) })
	return nil
}

func (d *Dataplane) restore(key lb.FrontendKey, was record, had bool) {
	if had {
		d.records[key] = was
		return
	}
	delete(d.records, key)
}

// forgetBackends drops the counts of backends that svc does not have, and suspicion. d.mu is
// held.
func (d *Dataplane) forgetBackends(svc *dataplane.Service) {
	has := func(c connections) bool {
		return slices.ContainsFunc(svc.Cluster.Backends, c.of) || slices.ContainsFunc(svc.Local.Backends, c.of)
	}
	maps.DeleteFunc(d.opened, func(c connections, _ uint64) bool { return c.service == svc.Name && !has(c) })
	maps.DeleteFunc(d.suspects, func(c connections, _ suspicion) bool { return c.service == svc.Name && !has(c) })
}

// leftBehind returns the frontends of old that next does not have.
func leftBehind(old, next *dataplane.Service) []lb.FrontendKey {
	var keys []lb.FrontendKey
	for _, fe := range old.Frontends {
		if !hasFrontend(next, fe.FrontendKey) {
			keys = append(keys, fe.FrontendKey)
		}
	}
	return keys
}

func hasFrontend(svc *dataplane.Service, key lb.FrontendKey) bool {
	return slices.ContainsFunc(svc.Frontends, func(fe lb.Frontend) bool { return fe.FrontendKey == key })
}

func samePool(a, b *dataplane.Pool) bool {
	return a.Empty == b.Empty && slices.Equal(a.Backends, b.Backends) && sameTable(a.Table, b.Table)
}

func sameTable(a, b algo.Table) bool {
	return a.Kind == b.Kind && a.Cost == b.Cost && a.N == b.N &&
		slices.Equal(a.Alias, b.Alias) && slices.Equal(a.Order, b.Order) &&
		slices.Equal(a.Factors, b.Factors) && slices.Equal(a.Starters, b.Starters)
}
