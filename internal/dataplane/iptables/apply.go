// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// sum tells chains with different rules apart, in its upper bits; the lower 16 are how
// many rules there are, at most. 0 is that of a chain whose rules are not known.
type sum uint64

const sumRules = 1<<16 - 1

// rules returns how many rules a chain has, up to sumRules.
func (s sum) rules() int { return int(s & sumRules) }

func sumOf(c chain) sum {
	h := fnv.New64a()
	for _, r := range c.rules {
		h.Write([]byte(r))
		h.Write([]byte{'\n'})
	}
	return max(sum(h.Sum64()), sumRules+1)&^sumRules | sum(min(len(c.rules), sumRules))
}

// constantSets are the ipsets that the rules of table filter read.
func constantSets(f lb.Family) []setSpec {
	var specs []setSpec
	for name, typ := range map[string]setType{
		vipsSet: hashIP, rejectSet: hashIPPort, dropSet: hashIPPort, rangedSet: hashIPPort,
		rangesSet: hashIPPortNet, nodePortRejectSet: hashNetPort, nodePortDropSet: hashNetPort, healthSet: hashNetPort,
	} {
		specs = append(specs, setSpec{name: setName(name, f), typ: typ, family: f})
	}
	return specs
}

// createConstantSets makes those of a family that are not there.
func (d *Dataplane) createConstantSets(f lb.Family) error {
	for _, s := range constantSets(f) {
		if err := d.sets.create(s); err != nil {
			return err
		}
	}
	return nil
}

// takeNode takes over what the Node says now, and which addresses count, and notes whether Services of the family
// have to be rendered anew.
func (d *Dataplane) takeNode(fam *family) {
	node := d.knownNode()
	pods := podMatches(fam.roots.family, d.addrs.Local(), node)
	fam.outdated = fam.outdated || !slices.Equal(pods, fam.facts.pods)
	fam.roots.node, fam.facts.pods = node, pods
	fam.roots.local, fam.roots.nodePorts = d.addrs.Local(), d.addrs.NodePorts()
	if at := d.localhost(fam.roots.family); at != fam.roots.localhost {
		fam.roots.localhost, fam.hooked = at, fam.hooked && !at // hook sets the sysctl
	}
}

// refresh writes what depends on the Node.
func (d *Dataplane) refresh(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.complete {
		return nil // the first Sync does it
	}
	var fails dataplane.SyncError
	for _, f := range families {
		fam := d.families[f]
		if fam == nil {
			continue
		}
		d.takeNode(fam)
		d.bring(ctx, fam, nil, &fails)
	}
	return fails.OrNil()
}

// bring makes steps, and renders other Services anew if that is due.
func (d *Dataplane) bring(ctx context.Context, fam *family, steps []step, fails *dataplane.SyncError) {
	before := len(fails.Failed)
	if fam.outdated {
		steps = d.withOthers(fam.roots.family, steps)
	}
	d.apply(ctx, fam, steps, fails)
	if len(fails.Failed) == before && fails.Other == nil {
		fam.outdated = false
	}
}

// again returns steps that change no Service of a family.
func (d *Dataplane) again(f lb.Family) []step {
	var steps []step
	for _, name := range slices.SortedFunc(maps.Keys(d.services), lb.ServiceName.Compare) {
		if name.Family == f {
			steps = append(steps, d.step(name, d.services[name].Service))
		}
	}
	return steps
}

// withOthers returns list and steps that change no Service for those that it has not.
func (d *Dataplane) withOthers(f lb.Family, list []step) []step {
	has := map[lb.ServiceName]bool{}
	for _, s := range list {
		has[s.name] = true
	}
	return append(list, slices.DeleteFunc(d.again(f), func(s step) bool { return has[s.name] })...)
}

// mend writes anew what was damaged, if it is so little that the rest can be trusted. It
// returns false if everything had better be written.
func (d *Dataplane) mend(ctx context.Context, damaged []*damage) (mended bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, found := range damaged {
		fam := d.families[found.family]
		if fam.chains == nil || len(found.jumps) > 0 || 2*len(found.chains) > len(fam.chains[natTable])+len(fam.chains[filterTable]) {
			return false, nil
		}
	}
	var fails dataplane.SyncError
	for _, found := range damaged {
		fam := d.families[found.family]
		lost := map[string]bool{}
		for _, k := range found.chains {
			fam.chains[k.table][k.name] = 0
			lost[k.name] = true
		}
		for _, t := range []*tree{fam.vips, fam.ports, fam.hairpins} {
			for name := range t.kids {
				if lost[name] {
					fam.chains[natTable][t.name] = 0 // so that change looks at all of the tree
				}
			}
		}
		steps := slices.DeleteFunc(d.again(found.family), func(s step) bool {
			return !slices.ContainsFunc(s.old.out.names, func(name string) bool { return lost[name] })
		})
		for i := range steps {
			steps[i].suspect = true
		}
		d.apply(ctx, fam, steps, &fails)
	}
	return true, fails.OrNil()
}

// repair writes everything anew: the kernel has not what it was given.
func (d *Dataplane) repair(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range families {
		if fam := d.families[f]; fam != nil {
			fam.chains = nil
			if err := d.hasten(ctx, fam); err != nil {
				d.opts.Log.Debug("nothing can be made before everything is", "family", f, "error", err)
			}
		}
	}
	var fails dataplane.SyncError
	for _, f := range families {
		fam := d.families[f]
		if fam == nil {
			continue
		}
		steps := d.again(f)
		for i := range steps {
			steps[i].suspect = true
		}
		d.apply(ctx, fam, steps, &fails)
	}
	if fails.Other == nil {
		fails.Other = d.sweep(ctx)
	}
	return fails.OrNil()
}

// hasten makes what serves at once: the jumps, in case no more than they are gone, or a
// few rules.
func (d *Dataplane) hasten(ctx context.Context, fam *family) error {
	_, err := fam.runner.ensureJumps(ctx) // not without the chains
	return errors.Join(err, d.reach(ctx, fam))
}

// reshare gives pools other shares.
func (d *Dataplane) reshare(ctx context.Context, shares map[poolKey][]float64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	steps := map[lb.ServiceName]step{}
	for key, list := range shares {
		svc, of := d.services[key.name], d.feedback.members(key)
		if svc == nil || !slices.Equal(svc.Pool(key.scope).Backends, of) {
			continue // it has changed meanwhile
		}
		s, ok := steps[key.name]
		if !ok {
			s = d.step(key.name, svc.Service)
		}
		s.next.shares[key.scope] = list
		steps[key.name] = s
	}
	byFamily := map[lb.Family][]step{}
	for _, s := range steps {
		byFamily[s.name.Family] = append(byFamily[s.name.Family], s)
	}
	var fails dataplane.SyncError
	for f, list := range byFamily {
		d.apply(ctx, d.families[f], list, &fails)
	}
	return fails.OrNil()
}

// edit enters steps into the trees and returns chains to write, of which most may be
// there already, and chains to remove.
func (fam *family) edit(steps []step) (put []chain, del []string) {
	vips, ports, local := map[spot]string{}, map[spot]string{}, map[spot]string{}
	gone := map[string]bool{}
	for _, s := range steps {
		if s.old != nil {
			fam.leave(&s.old.out, vips, ports, local)
			for _, name := range s.old.out.names {
				gone[name] = true
			}
		}
	}
	for _, s := range steps {
		if s.next != nil {
			fam.enter(&s.next.out, vips, ports, local)
			for _, c := range s.next.out.chains {
				delete(gone, c.name)
				put = append(put, c)
			}
		}
	}
	del = slices.Collect(maps.Keys(gone))
	for t, spots := range map[*tree]map[spot]string{fam.vips: vips, fam.ports: ports, fam.hairpins: local} {
		p, d := t.set(spots)
		put, del = append(put, p...), append(del, d...)
	}
	return put, del
}

func (fam *family) leave(out *rendered, vips, ports, local map[spot]string) {
	for s, end := range out.vips {
		if fam.vips.current(s) == end { // else another Service has taken it over
			vips[s] = ""
		}
	}
	for s, end := range out.nodePorts {
		if fam.ports.current(s) == end {
			ports[s] = ""
		}
	}
	for _, a := range out.hairpins {
		if fam.local[a]--; fam.local[a] == 0 {
			delete(fam.local, a)
			local[spot(addrDigits(nil, a))] = ""
		}
	}
}

func (fam *family) enter(out *rendered, vips, ports, local map[spot]string) {
	maps.Copy(vips, out.vips)
	maps.Copy(ports, out.nodePorts)
	for _, a := range out.hairpins {
		fam.local[a]++
		local[spot(addrDigits(nil, a))] = "-j " + masqueradeChain
	}
}

// rebuild makes the trees what Services say.
func (d *Dataplane) rebuild(fam *family) {
	fam.trees()
	vips, ports, local := map[spot]string{}, map[spot]string{}, map[spot]string{}
	for name, svc := range d.services {
		if name.Family != fam.roots.family {
			continue
		}
		out := rendered{vips: map[spot]string{}, nodePorts: map[spot]string{}, hairpins: svc.out.hairpins}
		for _, fe := range svc.Frontends {
			s := frontendSpot(fe.FrontendKey)
			switch {
			case d.owners[fe.FrontendKey] != name: // it was taken over
			case fe.Addr.Addr().IsUnspecified():
				out.nodePorts[s] = svc.out.nodePorts[s]
			default:
				out.vips[s] = svc.out.vips[s]
			}
		}
		fam.enter(&out, vips, ports, local)
	}
	fam.vips.update(vips)
	fam.ports.update(ports)
	fam.hairpins.update(local)
	for _, t := range []*tree{fam.vips, fam.ports, fam.hairpins} {
		t.all()
	}
}

// change returns what differs from what the kernel has.
func (fam *family) change(put []chain, del []string) change {
	for _, t := range []*tree{fam.vips, fam.ports, fam.hairpins} {
		if fam.chains[natTable][t.name] == 0 {
			put = append(put, t.all()...)
		}
	}
	c := change{natTable: {}, filterTable: {}}
	for t, list := range map[table][]chain{natTable: append(put, fam.roots.nat()...), filterTable: fam.roots.filter()} {
		seen := map[string]bool{}
		for _, p := range list {
			if fam.chains[t][p.name] != sumOf(p) && !seen[p.name] {
				c[t].put = append(c[t].put, p)
			}
			seen[p.name] = true
		}
	}
	for _, name := range del {
		if _, ok := fam.chains[natTable][name]; ok {
			c[natTable].del = append(c[natTable].del, name)
		}
	}
	slices.Sort(c[natTable].del)
	return c
}

// wanted returns the chains that there should be, by table.
func (fam *family) wanted(svcs map[lb.ServiceName]*service) map[table]map[string]bool {
	nat, filter := map[string]bool{}, map[string]bool{}
	for name, svc := range svcs {
		if name.Family == fam.roots.family {
			for _, name := range svc.out.names {
				nat[name] = true
			}
		}
	}
	for _, t := range []*tree{fam.vips, fam.ports, fam.hairpins} {
		for name := range t.kids {
			nat[name] = true
		}
	}
	for _, c := range fam.roots.nat() {
		nat[c.name] = true
	}
	for _, c := range fam.roots.filter() {
		filter[c.name] = true
	}
	return map[table]map[string]bool{natTable: nat, filterTable: filter}
}

// sweep removes what no Service needs: an earlier agent, or one of another version,
// left it.
func (d *Dataplane) sweep(ctx context.Context) error {
	var errs []error
	for _, f := range families {
		fam := d.families[f]
		if fam == nil || fam.chains == nil {
			continue
		}
		c := change{natTable: {}, filterTable: {}}
		wanted := fam.wanted(d.services)
		for t, b := range c {
			for _, name := range slices.Sorted(maps.Keys(fam.chains[t])) {
				if !wanted[t][name] {
					b.del = append(b.del, name)
				}
			}
		}
		errs = append(errs, d.restore(ctx, fam, c))
	}
	return errors.Join(errors.Join(errs...), d.sweepSets())
}

// leaveOtherBackend removes what an earlier agent has in the tables of the other backend
// of iptables, which serve no more than is in them.
func (d *Dataplane) leaveOtherBackend() error {
	other := legacyBackend
	if d.Backend() == legacyBackend {
		other = nftBackend
	}
	var errs []error
	for f := range d.families {
		removed, err := cleanupTables(f, other)
		for _, what := range removed {
			d.opts.Log.Info("removed what was left in the other backend of iptables", "removed", what)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepSets does it for ipsets.
func (d *Dataplane) sweepSets() error {
	wanted := map[string]bool{}
	for _, svc := range d.services {
		for _, s := range svc.out.affinities {
			wanted[s.name] = true
		}
	}
	constant := map[string]bool{}
	for f := range d.families {
		for _, s := range constantSets(f) {
			constant[s.name] = true
		}
	}
	var errs []error
	for _, name := range d.sets.names() {
		switch {
		case constant[name]:
			for m := range d.sets.members(name) {
				if d.members[setMember{name, m}] == 0 {
					errs = append(errs, d.sets.del(name, m))
				}
			}
		case !wanted[name] && strings.HasPrefix(name, prefix):
			errs = append(errs, d.sets.destroy(name))
		}
	}
	return errors.Join(errs...)
}
