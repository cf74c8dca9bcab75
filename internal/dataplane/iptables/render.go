// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// facts is what the chains of a Service depend on besides the Service.
type facts struct {
	seed uint64   // of hashes
	bpf  bool     // rules may run BPF programs
	pods []string // matches of packets that come from pods; none: that is not known
}

// rendered is what one Service needs in the kernel.
type rendered struct {
	chains     []chain                 // of table nat; nil where only their names are kept
	names      []string                // of chains
	vips       map[spot]string         // entries of the tree of addresses
	nodePorts  map[spot]string         // entries of the tree of node ports
	hairpins   []netip.Addr            // local backends, who may reach themselves
	members    []setMember             // of the constant ipsets
	affinities []setSpec               // ipsets of its own
	approx     string                  // what of its algorithm is only approximated; empty: nothing
	keep       map[netip.AddrPort]bool // backends that connections may stay with
}

// setMember is a member of one of the constant ipsets.
type setMember struct {
	set string
	member
}

// renderer renders one Service.
type renderer struct {
	*facts
	svc    *dataplane.Service
	shares [2][]float64 // by scope; nil: as the tables say
	id     string
	out    rendered
	pools  [2]bool // by scope: somebody refers to it
}

// entryKey is what tells frontends of a Service apart that need chains of their own.
type entryKey struct {
	masquerade      lb.Masquerade
	inside, outside lb.Scope
}

// render returns what svc needs. It is a pure function.
func render(svc *dataplane.Service, f *facts, shares [2][]float64) rendered {
	r := &renderer{facts: f, svc: svc, shares: shares, id: svc.Name.String()}
	r.out.vips, r.out.nodePorts = map[spot]string{}, map[spot]string{}
	r.out.keep = kept(svc)
	keys := r.entryKeys()
	for _, k := range keys {
		r.pools[k.inside], r.pools[k.outside] = true, true
	}
	direct := len(keys) == 1 && keys[0].inside == keys[0].outside
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		if r.pools[sc] {
			var first []string
			if direct && !r.isEmpty(sc) {
				first = r.masqueradeRules(keys[0].masquerade)
			}
			r.pool(sc, first)
		}
	}
	if !direct {
		for _, k := range keys {
			r.entry(k)
		}
	}
	for i := range svc.Frontends {
		fe := &svc.Frontends[i]
		r.frontend(fe, r.entryName(keyOf(fe), direct))
		r.verdict(fe)
	}
	r.health()
	r.local()
	for _, c := range r.out.chains {
		r.out.names = append(r.out.names, c.name)
	}
	return r.out
}

// kept returns the backends that connections of svc may stay with.
func kept(svc *dataplane.Service) map[netip.AddrPort]bool {
	keep := map[netip.AddrPort]bool{}
	for _, p := range []*dataplane.Pool{&svc.Cluster, &svc.Local} {
		for _, be := range p.Backends {
			keep[be.Addr] = true
		}
	}
	for _, addr := range svc.Terms.Draining {
		keep[addr] = true
	}
	return keep
}

func keyOf(fe *lb.Frontend) entryKey { return entryKey{fe.Masquerade, fe.Inside, fe.Outside} }

func (r *renderer) entryKeys() []entryKey {
	var keys []entryKey
	for i := range r.svc.Frontends {
		if k := keyOf(&r.svc.Frontends[i]); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

func (r *renderer) entryName(k entryKey, direct bool) string {
	if direct {
		return r.poolName(k.inside)
	}
	return hashName("E-", r.id, fmt.Sprint(k))
}

func (r *renderer) poolName(sc lb.Scope) string {
	if sc == lb.ScopeLocal {
		return hashName("L-", r.id)
	}
	return hashName("C-", r.id)
}

// isEmpty tells whether nobody can be picked from a pool.
func (r *renderer) isEmpty(sc lb.Scope) bool { return r.svc.Pool(sc).Table.Kind == algo.None }

// masqueradeRules mark those that are to be masqueraded. Processes of the node always
// are, where others are not: what they send may leave by another device than the one
// for which their address was chosen.
func (f *facts) masqueradeRules(m lb.Masquerade) []string {
	switch m {
	case lb.MasqueradeAlways:
		return []string{"-j " + masqueradeChain}
	case lb.MasqueradeOffCluster:
		if len(f.pods) == 1 { // without a chain that pods would only return from
			return []string{"! " + f.pods[0] + " -j " + masqueradeChain}
		}
		return []string{"-j " + offClusterChain}
	case lb.MasqueradeNever:
	}
	return []string{fromNode + " -j " + masqueradeChain}
}

// fromNode matches what processes of the node send.
const fromNode = "-m addrtype --src-type LOCAL"

// entry renders the chain of frontends with key k: it leads to the pool of the caller.
func (r *renderer) entry(k entryKey) {
	c := chain{name: r.entryName(k, false), rules: r.masqueradeRules(k.masquerade)}
	if k.inside != k.outside {
		inside := " -g " + r.poolName(k.inside)
		for _, pod := range r.pods {
			c.rules = append(c.rules, pod+inside)
		}
		c.rules = append(c.rules, fromNode+inside)
	}
	c.rules = append(c.rules, "-g "+r.poolName(k.outside))
	r.out.chains = append(r.out.chains, c)
}

// pool renders the chains of a pool. The last rule says whose it is: few packets meet it.
func (r *renderer) pool(sc lb.Scope, first []string) {
	p := r.svc.Pool(sc)
	head := chain{name: r.poolName(sc), rules: slices.Clone(first)}
	to := func(i int) string { return r.dnat(p.Backends[i].Addr) }
	if r.svc.Terms.Affinity > 0 && !r.isEmpty(sc) {
		to = func(i int) string { return "-g " + r.stickyName(p.Backends[i].Addr) }
		for i, be := range p.Backends {
			if be.Weight > 0 {
				head.rules = append(head.rules, fmt.Sprintf("-m set --match-set %s src %s", r.affinity(be.Addr).name, to(i)))
			}
		}
		head.rules = append(head.rules, "-j "+hashName("U-", r.id))
	}
	chains, approx := renderPool(poolSpec{
		name: head.name, family: r.svc.Name.Family, proto: r.svc.Name.Proto,
		backends: p.Backends, table: p.Table, shares: r.shares[sc],
		balance: r.svc.Balance, seed: r.seed, bpf: r.bpf, to: to,
	})
	if approx != "" {
		r.out.approx = approx
	}
	if len(chains) > 0 {
		head.rules = append(head.rules, chains[0].rules...)
		chains = chains[1:]
	}
	whose := fmt.Sprintf("-m comment --comment %q", r.id+" "+r.svc.Balance.Algorithm)
	if n := len(head.rules); n > 0 {
		head.rules[n-1] = whose + " " + head.rules[n-1]
	} else {
		head.rules = []string{whose}
	}
	r.out.chains = append(append(r.out.chains, head), chains...)
}

// dnat returns the end of a rule that sends connections to a backend.
func (r *renderer) dnat(to netip.AddrPort) string {
	return fmt.Sprintf("-p %s -j DNAT --to-destination %s", strings.ToLower(r.svc.Name.Proto.String()), to)
}

// affinity returns the ipset of the clients that a backend has.
func (r *renderer) affinity(be netip.AddrPort) setSpec {
	seconds := uint32(r.svc.Terms.Affinity / time.Second)
	kind := "A4-"
	if r.svc.Name.Family == lb.IPv6 {
		kind = "A6-"
	}
	return setSpec{
		name: hashName(kind, r.id, be.String(), fmt.Sprint(seconds)),
		typ:  hashIP, family: r.svc.Name.Family, timeout: seconds,
	}
}

func (r *renderer) stickyName(be netip.AddrPort) string { return hashName("B-", r.id, be.String()) }

// local renders what belongs to backends: whether they are local, and with session
// affinity the chains in which clients come to them, and leave all others.
func (r *renderer) local() {
	leave := chain{name: hashName("U-", r.id)}
	done := map[netip.AddrPort]bool{}
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		for _, be := range r.svc.Pool(sc).Backends {
			if !r.pools[sc] || done[be.Addr] {
				continue
			}
			done[be.Addr] = true
			if be.Local && !slices.Contains(r.out.hairpins, be.Addr.Addr()) {
				r.out.hairpins = append(r.out.hairpins, be.Addr.Addr())
			}
			if r.svc.Terms.Affinity == 0 || be.Weight == 0 {
				continue
			}
			set := r.affinity(be.Addr)
			r.out.affinities = append(r.out.affinities, set)
			leave.rules = append(leave.rules, fmt.Sprintf("-j SET --del-set %s src", set.name))
			r.out.chains = append(r.out.chains, chain{r.stickyName(be.Addr), []string{
				fmt.Sprintf("-j SET --add-set %s src --exist --timeout %d", set.name, set.timeout), r.dnat(be.Addr),
			}})
		}
	}
	if len(leave.rules) > 0 {
		r.out.chains = append(r.out.chains, leave)
	}
}

// frontend renders the entry of a tree that leads packets for fe to a chain.
func (r *renderer) frontend(fe *lb.Frontend, to string) {
	end, entries := "-g "+to, r.out.vips
	if fe.Addr.Addr().IsUnspecified() {
		entries = r.out.nodePorts
	}
	if fe.Ranged {
		end = fmt.Sprintf("-m set --match-set %s dst,dst,src %s", setName(rangesSet, r.svc.Name.Family), end)
	}
	entries[frontendSpot(fe.FrontendKey)] = end
}

// verdict renders what becomes of those that fe does not lead to a backend.
func (r *renderer) verdict(fe *lb.Frontend) {
	if fe.Type == lb.ClusterIP {
		r.add(vipsSet, member{addr: single(fe.Addr.Addr())})
	}
	for _, from := range r.ranges(fe) {
		r.add(rangesSet, member{addr: single(fe.Addr.Addr()), proto: fe.Proto, port: fe.Addr.Port(), from: from})
	}
	empty, verdict := r.emptyVerdict(fe)
	reject, drop := rejectSet, dropSet
	if fe.Addr.Addr().IsUnspecified() {
		reject, drop = nodePortRejectSet, nodePortDropSet
	}
	if fe.Ranged {
		r.addFrontend(drop, fe)
		reject = rangedSet
	}
	switch {
	case !empty:
	case verdict == lb.Drop && !fe.Ranged:
		r.addFrontend(drop, fe)
	case verdict == lb.Reject:
		r.addFrontend(reject, fe)
	}
}

// ranges returns who may use fe, without prefixes of length 0, which no set takes.
func (r *renderer) ranges(fe *lb.Frontend) []netip.Prefix {
	if !fe.Ranged {
		return nil
	}
	var out []netip.Prefix
	for _, p := range r.svc.Terms.SourceRanges {
		if p.Bits() == 0 {
			out = append(out, halves(r.svc.Name.Family)...)
			continue
		}
		out = append(out, p)
	}
	return out
}

// halves are two prefixes that hold all addresses of a family.
func halves(f lb.Family) []netip.Prefix {
	raw := f.Unspecified().AsSlice()
	raw[0] = 0x80
	upper, _ := netip.AddrFromSlice(raw)
	return []netip.Prefix{netip.PrefixFrom(f.Unspecified(), 1), netip.PrefixFrom(upper, 1)}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// emptyVerdict tells whether some callers of fe find no backend, and what they get.
// Where those inside and those outside would get different answers, refusal is the
// one that is never wrong: nobody answers anywhere.
func (r *renderer) emptyVerdict(fe *lb.Frontend) (empty bool, v lb.Verdict) {
	v = lb.Drop
	for _, sc := range []lb.Scope{fe.Inside, fe.Outside} {
		if r.isEmpty(sc) {
			empty = true
			v = min(v, r.svc.Pool(sc).Empty)
		}
	}
	return empty, v
}

// addFrontend adds fe to a set: a node port with all addresses.
func (r *renderer) addFrontend(set string, fe *lb.Frontend) {
	addrs := []netip.Prefix{single(fe.Addr.Addr())}
	if fe.Addr.Addr().IsUnspecified() {
		addrs = halves(r.svc.Name.Family)
	}
	for _, a := range addrs {
		r.add(set, member{addr: a, proto: fe.Proto, port: fe.Addr.Port()})
	}
}

// health opens the port at which load balancers ask for the Service's health, at all
// addresses of the node as kube-proxy does.
func (r *renderer) health() {
	if r.svc.Terms.HealthPort == 0 {
		return
	}
	for _, a := range halves(r.svc.Name.Family) {
		r.add(healthSet, member{addr: a, proto: lb.TCP, port: r.svc.Terms.HealthPort})
	}
}

func (r *renderer) add(set string, m member) {
	r.out.members = append(r.out.members, setMember{setName(set, r.svc.Name.Family), m})
}
