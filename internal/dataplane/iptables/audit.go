// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// snapshot is what the kernel had when all rules were read last.
type snapshot struct {
	sums    map[lb.Family]map[table]map[string]sum // of the rules as parsed; nil: they were never read
	touched map[chainKey]bool                      // chains that were written since reading began
	checked bool                                   // all but the Services was compared
}

// chainKey names a chain of a node.
type chainKey struct {
	family lb.Family
	table  table
	name   string
}

// touch notes that a chain was written: what was read of it, or is being read, is old.
func (d *Dataplane) touch(k chainKey) {
	for _, chains := range []map[chainKey]bool{d.audited.touched, d.reading} {
		if chains != nil {
			chains[k] = true
		}
	}
}

// faults logs an error when it is another one than the last.
type faults struct{ last string }

func (f *faults) tell(log *slog.Logger, err error) {
	switch {
	case err == nil:
		f.last = ""
	case err.Error() != f.last:
		f.last = err.Error()
		log.Error("iptables: will try again", "error", err)
	}
}

// readBack reads all rules. Syncs go on meanwhile.
func (d *Dataplane) readBack(ctx context.Context) error {
	d.mu.Lock()
	next := snapshot{sums: map[lb.Family]map[table]map[string]sum{}, touched: map[chainKey]bool{}}
	complete := d.complete
	d.reading = next.touched
	d.mu.Unlock()
	if !complete {
		return nil
	}
	for f, fam := range d.families {
		next.sums[f] = map[table]map[string]sum{}
		for _, t := range []table{natTable, filterTable} {
			chains, err := fam.runner.chains(ctx, t)
			if err != nil {
				return err
			}
			delete(chains, keepChain)
			sums := make(map[string]sum, len(chains))
			for name, rules := range chains {
				sums[name] = parsedSum(chain{name, rules})
			}
			next.sums[f][t] = sums
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.audited, d.reading = next, nil
	return nil
}

// parsedSum is the same for rules as they are rendered and as the kernel tells them.
func parsedSum(c chain) sum {
	parsed := chain{name: c.name}
	for _, text := range c.rules {
		r, err := parseRule(text)
		if err != nil {
			parsed.rules = append(parsed.rules, "unknown: "+text)
			continue
		}
		parsed.rules = append(parsed.rules, r.form)
	}
	return sumOf(parsed)
}

// Audit implements dataplane.Auditor. It compares with the rules that were read last;
// what was written since then is passed over.
func (d *Dataplane) Audit(ctx context.Context, svcs []*dataplane.Service) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.audited.sums == nil || !d.complete {
		return nil, nil
	}
	var found []string
	var fails dataplane.SyncError
	for _, f := range families {
		fam := d.families[f]
		if fam == nil || fam.chains == nil { // what is not known is about to be written
			continue
		}
		var chains []chain
		for _, svc := range svcs {
			if s := d.services[svc.Name]; s != nil && svc.Name.Family == f {
				chains = append(chains, render(s.Service, &fam.facts, s.shares).chains...)
			}
		}
		found = append(found, d.compare(fam, natTable, chains)...)
		if !d.audited.checked {
			found = append(found, d.compareRest(fam)...)
		}
		if d.isWrong(fam) {
			d.apply(ctx, fam, d.again(f), &fails)
		}
	}
	if !d.audited.checked {
		d.audited.checked = true
		differences, err := d.auditSets()
		found = append(found, differences...)
		fails.Other = errors.Join(fails.Other, err, d.sweep(ctx))
	}
	return found, fails.OrNil()
}

// compare returns how chains differ from what was read, and forgets that the kernel has
// those that do.
func (d *Dataplane) compare(fam *family, t table, chains []chain) (found []string) {
	have := d.audited.sums[fam.roots.family][t]
	for _, c := range chains {
		got, ok := have[c.name]
		switch {
		case d.audited.touched[chainKey{fam.roots.family, t, c.name}], got == parsedSum(c):
			continue
		case !ok:
			found = append(found, fmt.Sprintf("%s: table %s: chain %s is missing", fam.roots.family, t, c.name))
		default:
			found = append(found, fmt.Sprintf("%s: table %s: chain %s has other rules", fam.roots.family, t, c.name))
		}
		fam.chains[t][c.name] = 0
	}
	return found
}

// compareRest compares what belongs to no Service, and finds chains that should not be.
func (d *Dataplane) compareRest(fam *family) (found []string) {
	nat := fam.roots.nat()
	for _, t := range []*tree{fam.vips, fam.ports, fam.hairpins} {
		nat = append(nat, t.all()...)
	}
	found = append(d.compare(fam, natTable, nat), d.compare(fam, filterTable, fam.roots.filter())...)
	wanted := fam.wanted(d.services)
	for t, chains := range d.audited.sums[fam.roots.family] {
		for name := range chains {
			if !wanted[t][name] && !d.audited.touched[chainKey{fam.roots.family, t, name}] {
				found = append(found, fmt.Sprintf("%s: table %s: chain %s belongs to nobody", fam.roots.family, t, name))
				fam.chains[t][name] = 0
			}
		}
	}
	slices.Sort(found)
	return found
}

// isWrong tells whether the kernel has not what it should in some chain.
func (d *Dataplane) isWrong(fam *family) bool {
	wanted := fam.wanted(d.services)
	for t, chains := range fam.chains {
		for name, s := range chains {
			if s == 0 && wanted[t][name] {
				return true
			}
		}
	}
	return false
}

// auditSets compares the members of the constant ipsets with what Services need.
func (d *Dataplane) auditSets() ([]string, error) {
	found, err := d.sets.refresh()
	if err != nil {
		return nil, err
	}
	var errs []error
	for f := range d.families {
		for _, s := range constantSets(f) {
			errs = append(errs, d.sets.create(s))
		}
	}
	for _, svc := range d.services {
		for _, s := range svc.out.affinities {
			errs = append(errs, d.sets.create(s))
		}
	}
	for m := range d.members {
		errs = append(errs, d.sets.add(m.set, m.member))
	}
	return found, errors.Join(errs...)
}
