// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// manyPools is from how many pools on a repair has two steps.
const manyPools = 1000

// samplePools is how many pools are looked at to know whether nearly all rules are gone.
const samplePools = 32

// reach makes most Services reachable again by few rules, if nearly all are gone and they
// are so many that writing them takes seconds: each plain Service has one backend, which
// is picked at random, until everything is written.
func (d *Dataplane) reach(ctx context.Context, fam *family) error {
	pools := d.poolChains(fam.roots.family)
	if len(pools) < manyPools {
		return nil
	}
	rand.Shuffle(len(pools), func(i, j int) { pools[i], pools[j] = pools[j], pools[i] })
	left, err := fam.runner.filled(ctx, pools[:samplePools])
	if err != nil || left > samplePools/2 {
		return err
	}
	if err := d.createConstantSets(fam.roots.family); err != nil {
		return err
	}
	if err := fam.runner.dropEmpty(ctx); err != nil {
		return err
	}
	c, ok := d.brief(fam, rand.Uint32)
	if !ok {
		return nil
	}
	fam.hooked = false
	err = fam.runner.restore(ctx, c)
	d.watcher.wrote(fam.roots.family)
	if err == nil {
		err = d.hook(ctx, fam)
	}
	if err == nil {
		d.opts.Log.Info("reachable again; most Services have one backend until all rules are written", "family", fam.roots.family)
	}
	return err
}

// dropEmpty removes the chains of table nat that have no rules and that no rule leads to.
// It takes iptables-nft-restore 0.1 s for 12,000 of them, and 1.4 s more to fill them than
// to fill new ones: it asks for the rules of each.
func (r *runner) dropEmpty(ctx context.Context) error {
	if r.kind != nftBackend {
		return nil
	}
	kernel, err := openNFT()
	if err != nil {
		return err
	}
	uses, err := kernel.uses(r.family, natTable)
	if err = errors.Join(err, kernel.close()); err != nil {
		return err
	}
	b := &batch{}
	for name, n := range uses {
		if n == 0 && strings.HasPrefix(name, prefix) {
			b.del = append(b.del, name)
		}
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	err = r.feed(ctx, func(w io.Writer) error {
		s := stringWriter{w: w}
		s.write("*", string(natTable), "\n")
		for _, name := range b.del { // not emptied first: one that has a rule by now stays, and so do all
			s.write("-X ", name, "\n")
		}
		s.write("COMMIT\n")
		return s.err
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count(natTable, b)
	return nil
}

// poolChains returns the chains of all pools of a family.
func (d *Dataplane) poolChains(f lb.Family) (names []string) {
	for _, svc := range d.services {
		if svc.Name.Family != f {
			continue
		}
		for _, name := range svc.out.names {
			if _, isPool := poolScope(name); isPool {
				names = append(names, name)
			}
		}
	}
	return names
}

// filled returns how many of some chains of table nat have rules. Where only these can be
// read, no others are.
func (r *runner) filled(ctx context.Context, names []string) (n int, err error) {
	if r.kind == nftBackend {
		kernel, err := openNFT()
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			rules := 0
			if err = kernel.rules(r.family, natTable, name, func([]byte) { rules++ }); err != nil {
				break
			}
			n += min(rules, 1)
		}
		return n, errors.Join(err, kernel.close())
	}
	chains, err := r.chains(ctx, natTable)
	for _, name := range names {
		n += min(len(chains[name]), 1)
	}
	return n, err
}

// brief returns the chains with which a family serves all frontends with few rules. It
// returns false if Services are of a kind for which that cannot be done.
func (d *Dataplane) brief(fam *family, random func() uint32) (change, bool) {
	ends := map[string]string{} // of entries that lead to a pool of a plain Service
	var put []chain
	for _, svc := range d.services {
		if svc.Name.Family != fam.roots.family {
			continue
		}
		if slices.ContainsFunc(svc.Frontends, func(fe lb.Frontend) bool {
			return fe.Type == lb.ClusterIP && fe.Masquerade != lb.MasqueradeOffCluster
		}) {
			return nil, false // one rule marks for all cluster IPs
		}
		r := &renderer{facts: &fam.facts, svc: svc.Service, id: svc.Name.String()}
		if sc, plain := r.plain(); plain {
			to := anyOf(svc.Pool(sc).Backends, random)
			ends["-g "+r.poolName(sc)] = "-j DNAT --to-destination " + to.String() // a tree names the protocol
			continue
		}
		put = append(put, render(svc.Service, &fam.facts, svc.shares).chains...)
	}
	vips := newTree(fam.vips.name, fam.roots.family, true, fam.vips.match)
	vips.entries = slices.Clone(fam.vips.entries)
	for i, e := range vips.entries {
		if end, ok := ends[e.end]; ok {
			vips.entries[i].end = end
		}
	}
	for _, t := range []*tree{vips, fam.ports, fam.hairpins} {
		put = append(put, t.all()...)
	}
	return change{
		natTable:    {put: append(put, fam.markingFirst()...)},
		filterTable: {put: fam.roots.filter()},
	}, true
}

// markingFirst returns the constant chains of table nat, with rules before all others that
// mark who is to be masqueraded at cluster IPs.
func (fam *family) markingFirst() []chain {
	var marks []string
	for _, rule := range fam.masqueradeRules(lb.MasqueradeOffCluster) {
		marks = append(marks, "-m set --match-set "+setName(vipsSet, fam.roots.family)+" dst "+rule)
	}
	chains := fam.roots.nat()
	for i := range chains {
		if chains[i].name == servicesChain {
			chains[i].rules = append(marks, chains[i].rules...)
		}
	}
	return chains
}

// plain tells whether all callers get any backend of one pool, at cluster IPs alone.
func (r *renderer) plain() (sc lb.Scope, ok bool) {
	for _, fe := range r.svc.Frontends {
		if fe.Type != lb.ClusterIP || fe.Ranged || fe.Inside != fe.Outside || fe.Inside != r.svc.Frontends[0].Inside {
			return sc, false
		}
		sc = fe.Inside
	}
	return sc, len(r.svc.Frontends) > 0 && r.svc.Terms.Affinity == 0 && !r.isEmpty(sc)
}

// anyOf returns the address of a backend, each in proportion to its weight. One of them
// has one.
func anyOf(list []lb.Backend, random func() uint32) (picked netip.AddrPort) {
	total := uint32(0)
	for _, be := range list {
		if w := uint32(be.Weight); w > 0 {
			if total += w; random()%total < w {
				picked = be.Addr
			}
		}
	}
	return picked
}
