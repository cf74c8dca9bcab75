// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// errNoFamily is why a Service of a family is not served whose iptables does not work.
var errNoFamily = errors.New("iptables does not work for this family on this node; see lbproxy check")

// step is the change of one Service.
type step struct {
	name lb.ServiceName
	old  *service // nil: it is not there
	next *service // nil: it goes

	suspect bool // flows of it may have begun without its rules
}

// Sync implements dataplane.Dataplane. Each family is one iptables-restore.
func (d *Dataplane) Sync(ctx context.Context, delta dataplane.Delta) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var fails dataplane.SyncError
	steps := d.plan(delta, &fails)
	for _, f := range families {
		if fam := d.families[f]; fam != nil {
			d.takeNode(fam)
			d.bring(ctx, fam, steps[f], &fails)
		}
	}
	if delta.Full && fails.Other == nil {
		if d.complete || len(fails.Failed) == 0 { // else what fails may be there from before: audits sweep later
			fails.Other = d.sweep(ctx)
		}
		if !d.complete {
			fails.Other = errors.Join(fails.Other, d.leaveOtherBackend())
		}
		d.complete = true
	}
	return fails.OrNil()
}

// plan returns the steps of a delta by family, without Services that cannot be
// programmed: those are in fails.
func (d *Dataplane) plan(delta dataplane.Delta, fails *dataplane.SyncError) map[lb.Family][]step {
	next := map[lb.ServiceName]*dataplane.Service{}
	for _, name := range delta.Delete {
		next[name] = nil
	}
	if delta.Full {
		for name := range d.services {
			next[name] = nil
		}
	}
	for _, svc := range delta.Put {
		next[svc.Name] = svc
	}
	for name, svc := range next {
		if err := d.refusal(name, svc); err != nil {
			fails.Fail(name, fmt.Errorf("service %s: %w", name, err))
			delete(next, name)
		}
	}
	for d.conflicts(next, fails) {
	}
	steps := map[lb.Family][]step{}
	for _, name := range slices.SortedFunc(maps.Keys(next), lb.ServiceName.Compare) {
		if s := d.step(name, next[name]); s.old != nil || s.next != nil {
			steps[name.Family] = append(steps[name.Family], s)
		}
	}
	return steps
}

// refusal returns why a Service cannot become svc.
func (d *Dataplane) refusal(name lb.ServiceName, svc *dataplane.Service) error {
	if svc != nil && d.families[name.Family] == nil {
		return errNoFamily
	}
	if svc != nil {
		if err := ofOneFamily(svc); err != nil {
			return err
		}
	}
	if d.fail != nil {
		return d.fail(name)
	}
	return nil
}

// ofOneFamily returns an error if an address of svc is not of its family.
func ofOneFamily(svc *dataplane.Service) error {
	check := func(what string, at netip.AddrPort) error {
		if lb.FamilyOf(at.Addr()) != svc.Name.Family {
			return fmt.Errorf("%s %s is not of %s", what, at, svc.Name.Family)
		}
		return nil
	}
	for _, fe := range svc.Frontends {
		if err := check("frontend", fe.Addr); err != nil {
			return err
		}
	}
	for _, p := range []*dataplane.Pool{&svc.Cluster, &svc.Local} {
		for _, be := range p.Backends {
			if err := check("backend", be.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// conflicts removes Services from next that claim a frontend of another one. If it does,
// it has to be called again: what is removed lets go of nothing.
func (d *Dataplane) conflicts(next map[lb.ServiceName]*dataplane.Service, fails *dataplane.SyncError) (found bool) {
	claimed := map[lb.FrontendKey]lb.ServiceName{}
	for _, name := range slices.SortedFunc(maps.Keys(next), lb.ServiceName.Compare) {
		svc := next[name]
		if svc == nil {
			continue
		}
		for _, fe := range svc.Frontends {
			owner, owned := d.owners[fe.FrontendKey]
			if _, changes := next[owner]; owned && changes && owner != name && !claims(next[owner], fe.FrontendKey) {
				owned = false // it lets go
			}
			if by, ok := claimed[fe.FrontendKey]; ok {
				owner, owned = by, true
			}
			if owned && owner != name {
				fails.Fail(name, fmt.Errorf("service %s: frontend %s belongs to service %s", name, fe.FrontendKey, owner))
				delete(next, name)
				found = true
				break
			}
			claimed[fe.FrontendKey] = name
		}
	}
	return found
}

func claims(svc *dataplane.Service, k lb.FrontendKey) bool {
	return svc != nil && slices.ContainsFunc(svc.Frontends, func(fe lb.Frontend) bool { return fe.FrontendKey == k })
}

// step returns the step to svc, which goes if it is nil. Shares that came of loads stay
// while the backends do.
func (d *Dataplane) step(name lb.ServiceName, svc *dataplane.Service) step {
	s := step{name: name, old: d.services[name]}
	if svc == nil {
		return s
	}
	s.next = &service{Service: svc}
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		if s.old != nil && sameMembers(s.old.Pool(sc), svc.Pool(sc)) {
			s.next.shares[sc] = s.old.shares[sc]
		}
	}
	return s
}

// sameMembers tells whether shares of a's backends are shares of b's, too.
func sameMembers(a, b *dataplane.Pool) bool {
	return a.Table.Kind == b.Table.Kind && a.Table.Cost == b.Table.Cost && slices.Equal(a.Backends, b.Backends)
}

// mostFailures is how many Services are looked for in one family that the kernel refuses:
// if there are more, it is not the Services.
const mostFailures = 16

// apply makes steps. If they fail together they are halved, so that a Service that the
// kernel refuses costs only itself.
func (d *Dataplane) apply(ctx context.Context, fam *family, steps []step, fails *dataplane.SyncError) {
	err := d.adopt(ctx, fam)
	if err == nil {
		err = d.try(ctx, fam, steps, fails)
	}
	if err != nil && !errors.Is(err, errLocked) && ctx.Err() == nil && len(steps) > 0 && fam.chains != nil {
		if errNone := d.try(ctx, fam, nil, fails); errNone == nil {
			budget := mostFailures
			err = d.halve(ctx, fam, steps, fails, &budget, err)
		}
	}
	if err != nil {
		fails.Other = errors.Join(fails.Other, fmt.Errorf("%s: %w", fam.roots.family, err))
	}
}

// halve makes steps that failed together with err, in parts. It returns an error if it
// gives up.
func (d *Dataplane) halve(
	ctx context.Context, fam *family, steps []step, fails *dataplane.SyncError, budget *int, err error,
) error {
	if len(steps) == 1 {
		if *budget--; *budget < 0 {
			return err
		}
		fails.Fail(steps[0].name, fmt.Errorf("service %s: %w", steps[0].name, err))
		return nil
	}
	half := len(steps) / 2
	for _, part := range [][]step{steps[:half], steps[half:]} {
		err := d.try(ctx, fam, part, fails)
		if errors.Is(err, errLocked) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			err = d.halve(ctx, fam, part, fails, budget, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// try makes steps: first ipsets get what rules will ask for, then rules change at once,
// then what nobody asks for any more is removed from ipsets.
func (d *Dataplane) try(ctx context.Context, fam *family, steps []step, fails *dataplane.SyncError) error {
	steps = d.prepare(fam, steps, fails)
	put, del := fam.edit(steps)
	c := fam.change(put, del)
	if err := d.restore(ctx, fam, c); err != nil {
		d.undo(fam, steps)
		return err
	}
	d.commit(steps)
	err := errors.Join(d.hook(ctx, fam), d.release(steps), d.endStale(ctx, fam, steps))
	if err != nil { // none of this is a Service's fault
		fails.Other = errors.Join(fails.Other, fmt.Errorf("%s: %w", fam.roots.family, err))
	}
	return nil
}

// adopt learns what the kernel has, once, and makes the constant ipsets.
func (d *Dataplane) adopt(ctx context.Context, fam *family) error {
	if fam.chains != nil {
		return nil
	}
	if err := d.createConstantSets(fam.roots.family); err != nil {
		return err
	}
	have := map[table]map[string]sum{natTable: {}, filterTable: {}}
	for t := range have {
		names, err := fam.runner.names(ctx, t)
		if err != nil {
			return err
		}
		for _, name := range names {
			if name != keepChain { // it goes with the other dataplane
				have[t][name] = 0
			}
		}
	}
	fam.chains, fam.hooked = have, false
	d.rebuild(fam)
	return nil
}

// prepare renders what comes and puts into ipsets what its rules ask for. Services that
// do not fit are left out.
func (d *Dataplane) prepare(fam *family, steps []step, fails *dataplane.SyncError) []step {
	var ready []step
	for _, s := range steps {
		if s.next != nil {
			s.next.out = render(s.next.Service, &fam.facts, s.next.shares)
			if err := d.acquire(&s.next.out); err != nil {
				fails.Fail(s.name, fmt.Errorf("service %s: %w", s.name, err))
				continue
			}
		}
		ready = append(ready, s)
	}
	return ready
}

// acquire puts what a Service needs into ipsets: all of it, or nothing.
func (d *Dataplane) acquire(out *rendered) error {
	for i, m := range out.members {
		if d.members[m] == 0 {
			if err := d.sets.add(m.set, m.member); err != nil {
				return errors.Join(err, d.letGo(out.members[:i]))
			}
		}
		d.members[m]++
	}
	for _, s := range out.affinities {
		if err := d.sets.create(s); err != nil {
			return errors.Join(err, d.letGo(out.members))
		}
	}
	return nil
}

// letGo removes members from ipsets that no other Service needs.
func (d *Dataplane) letGo(ms []setMember) error {
	var errs []error
	for _, m := range ms {
		if d.members[m]--; d.members[m] > 0 {
			continue
		}
		delete(d.members, m)
		errs = append(errs, d.sets.del(m.set, m.member))
	}
	return errors.Join(errs...)
}

// restore applies a change and remembers it.
func (d *Dataplane) restore(ctx context.Context, fam *family, c change) error {
	if c.empty() {
		return nil
	}
	err := fam.runner.restore(ctx, c)
	d.watcher.wrote(fam.roots.family)
	fam.counted.restored(c, err)
	for t, b := range c {
		for _, p := range b.put {
			fam.chains[t][p.name] = sumOf(p)
			if err != nil { // the kernel may have it all the same
				fam.chains[t][p.name] = 0
			}
			d.touch(chainKey{fam.roots.family, t, p.name})
		}
		for _, name := range b.del {
			if err == nil {
				delete(fam.chains[t], name)
			}
			d.touch(chainKey{fam.roots.family, t, name})
		}
		if err == nil {
			d.restored.Add(uint64(len(b.put) + len(b.del)))
		}
	}
	return err
}

// hook leads packets to the chains, which are there by now.
func (d *Dataplane) hook(ctx context.Context, fam *family) error {
	if fam.hooked {
		return nil
	}
	added, err := fam.runner.ensureJumps(ctx)
	d.watcher.wrote(fam.roots.family)
	d.watcher.forget(fam.roots.family) // somebody may change them at the same time
	d.restored.Add(uint64(added))
	fam.hooked = err == nil
	if fam.hooked && fam.roots.localhost { // the guard of 127.0.0.0/8 is in place
		openLocalnet(d.opts, systemSettings(d.opts.Log))
	}
	return err
}

// undo forgets steps that failed.
func (d *Dataplane) undo(fam *family, steps []step) {
	for _, s := range steps {
		if s.next != nil {
			if err := d.letGo(s.next.out.members); err != nil {
				d.opts.Log.Warn("members stay in ipsets until the next audit", "service", s.name, "error", err)
			}
		}
	}
	d.rebuild(fam)
}

// commit remembers steps that were made.
func (d *Dataplane) commit(steps []step) {
	for _, s := range steps {
		if s.old == nil {
			continue
		}
		for _, fe := range s.old.Frontends {
			if d.owners[fe.FrontendKey] == s.name {
				delete(d.owners, fe.FrontendKey)
			}
		}
		delete(d.services, s.name)
	}
	for _, s := range steps {
		if s.next != nil {
			for _, fe := range s.next.Frontends {
				d.owners[fe.FrontendKey] = s.name
			}
			s.next.out.chains = nil // of many Services they are large
			d.services[s.name] = s.next
		}
		d.announce(s)
	}
}

// announce tells what is approximated where that changed.
func (d *Dataplane) announce(s step) {
	var before, after string
	if s.old != nil {
		before = s.old.out.approx
	}
	if s.next != nil {
		after = s.next.out.approx
	}
	if before != after {
		d.opts.Announce(s.name, after)
	}
}

// release removes what nobody needs any more from ipsets, and ipsets of clients whose
// backend or Service is gone.
func (d *Dataplane) release(steps []step) error {
	var errs []error
	for _, s := range steps {
		if s.old == nil {
			continue
		}
		errs = append(errs, d.letGo(s.old.out.members))
		for _, set := range s.old.out.affinities {
			if s.next == nil || !slices.Contains(s.next.out.affinities, set) {
				errs = append(errs, d.sets.destroy(set.name))
			}
		}
	}
	return errors.Join(errs...)
}
