// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// View reads what the iptables dataplane has in the kernel. It needs no agent and changes
// nothing. Rules are as they were when it was opened, and ipsets as they are.
type View struct {
	families map[lb.Family]*familyView
	sets     *ipsets
	node     map[netip.Addr]bool // addresses of the node
	services map[lb.ServiceName]*serviceView
	owners   map[lb.FrontendKey]*frontendView
}

// familyView is the rules of one family.
type familyView struct {
	nat, filter *tracer
}

// serviceView is what rules say of one Service.
type serviceView struct {
	name      lb.ServiceName
	algorithm string
	frontends []*frontendView
	pools     [2]string // chains, by scope; empty: nobody uses it
}

// frontendView is where the tree of frontends leads to.
type frontendView struct {
	lb.FrontendKey
	service *serviceView
	entry   string // chain
	ranged  bool   // only who is in the source ranges gets there
}

// OpenView reads what there is in the network namespace of the calling thread. The error
// wraps dataplane.ErrNoState if that is nothing.
func OpenView(opts Options) (_ *View, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("reading lbproxy's rules needs root: %w", os.ErrPermission)
	}
	v := &View{
		families: map[lb.Family]*familyView{}, node: map[netip.Addr]bool{},
		services: map[lb.ServiceName]*serviceView{}, owners: map[lb.FrontendKey]*frontendView{},
	}
	for _, f := range families {
		if err := v.read(f); err != nil {
			return nil, err
		}
	}
	if len(v.families) == 0 {
		return nil, fmt.Errorf("no chain %s: %w", servicesChain, dataplane.ErrNoState)
	}
	for f, fam := range v.families {
		v.find(f, fam)
		addrs, err := nodeAddrs(f)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			v.node[a] = true
		}
	}
	if v.sets, err = openIPSets(); err != nil {
		return nil, err
	}
	for _, fam := range v.families {
		for _, t := range []*tracer{fam.nat, fam.filter} {
			t.local, t.inSet = v.isLocal, v.isIn
			t.random = func() uint32 { return 0 } // the first that can be
		}
	}
	return v, nil
}

// Close releases the view.
func (v *View) Close() error {
	v.sets.close()
	return nil
}

// read reads the chains of a family, of the backend that has them.
func (v *View) read(f lb.Family) error {
	for _, backend := range []string{nftBackend, legacyBackend} {
		have := haveTables(f, backend)
		if !have(natTable) || !have(filterTable) {
			continue
		}
		r, err := openRunner(f, backend, runnerOptions{})
		if err != nil {
			continue // it is not installed, and nobody can have used it
		}
		nat, err := r.chains(context.Background(), natTable)
		if err != nil {
			return err
		}
		if _, ours := nat[servicesChain]; !ours {
			continue
		}
		delete(nat, keepChain) // it serves nobody
		filter, err := r.chains(context.Background(), filterTable)
		if err != nil {
			return err
		}
		fam := &familyView{}
		if fam.nat, err = savedTracer(nat); err == nil {
			fam.filter, err = savedTracer(filter)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		v.families[f] = fam
		return nil
	}
	return nil
}

func savedTracer(saved map[string][]string) (*tracer, error) {
	chains := make([]chain, 0, len(saved))
	for name, rules := range saved {
		chains = append(chains, chain{name, rules})
	}
	return newTracer(chains)
}

// isLocal tells whether an address is the node's.
func (v *View) isLocal(a netip.Addr) bool { return v.node[a] || a.IsLoopback() }

// find finds all Services and frontends of a family.
func (v *View) find(f lb.Family, fam *familyView) {
	for name, rules := range fam.nat.chains {
		scope, isPool := poolScope(name)
		if !isPool || len(rules) == 0 {
			continue
		}
		if svc := v.serviceOf(rules); svc != nil {
			svc.pools[scope] = name
		}
	}
	v.descend(fam, servicesChain, lb.FrontendKey{Addr: netip.AddrPortFrom(f.Unspecified(), 0)})
	for _, svc := range v.services {
		slices.SortFunc(svc.frontends, func(a, b *frontendView) int {
			return lb.Frontend{FrontendKey: a.FrontendKey}.Compare(lb.Frontend{FrontendKey: b.FrontendKey})
		})
	}
}

// poolScope tells whether a chain is a pool's, and of which scope.
func poolScope(name string) (lb.Scope, bool) {
	switch {
	case strings.HasPrefix(name, prefix+"C-"):
		return lb.ScopeCluster, true
	case strings.HasPrefix(name, prefix+"L-"):
		return lb.ScopeLocal, true
	}
	return 0, false
}

// serviceOf returns the Service that a rule of a pool's chain names: the last one, or,
// as an earlier version had it, the first.
func (v *View) serviceOf(rules []rule) *serviceView {
	text := ""
	for _, r := range slices.Backward(rules) {
		var ok bool
		if text, ok = remarkOf(r); ok {
			break
		}
	}
	id, algorithm, _ := strings.Cut(text, " ")
	name, err := lb.ParseServiceName(id)
	if err != nil {
		return nil // somebody else's words
	}
	if v.services[name] == nil {
		v.services[name] = &serviceView{name: name, algorithm: algorithm}
	}
	return v.services[name]
}

// remarkOf returns the comment of a rule.
func remarkOf(r rule) (text string, ok bool) {
	words := splitRule(r.text)
	i := slices.Index(words, "--comment")
	if i < 0 || i+1 >= len(words) {
		return "", false
	}
	return words[i+1], true
}

// descend follows the trees of frontends from a chain. at is what is known of where
// packets that come there were sent to.
func (v *View) descend(fam *familyView, name string, at lb.FrontendKey) {
	for _, r := range fam.nat.chains[name] {
		to, ranged := narrowed(r, at)
		switch {
		case r.chain == nodePortsChain || strings.HasPrefix(r.chain, prefix+"T-"):
			if r.chain == nodePortsChain { // whatever addresses it is about
				to = at
			}
			v.descend(fam, r.chain, to)
		case strings.HasPrefix(r.chain, prefix+"E-") || strings.HasPrefix(r.chain, prefix+"C-") || strings.HasPrefix(r.chain, prefix+"L-"):
			if svc := v.entryOf(fam, r.chain); svc != nil && v.owners[to] == nil {
				fe := &frontendView{to, svc, r.chain, ranged}
				svc.frontends = append(svc.frontends, fe)
				v.owners[to] = fe
			}
		}
	}
}

// narrowed returns what a rule says of where packets are sent to, beyond at, and whether
// it asks for source ranges.
func narrowed(r rule, at lb.FrontendKey) (to lb.FrontendKey, ranged bool) {
	to = at
	words := splitRule(r.text)
	for i := 0; i+1 < len(words); i++ {
		value := words[i+1]
		switch words[i] {
		case "-d":
			if p, err := netip.ParsePrefix(value); err == nil {
				to.Addr = netip.AddrPortFrom(p.Addr(), to.Addr.Port())
			} else if a, err := netip.ParseAddr(value); err == nil {
				to.Addr = netip.AddrPortFrom(a, to.Addr.Port())
			}
		case "-p":
			if p, err := lb.ParseProto(value); err == nil {
				to.Proto = p
			}
		case "--dport":
			if low, _, err := numbers(value, ":", 16); err == nil {
				to.Addr = netip.AddrPortFrom(to.Addr.Addr(), uint16(low))
			}
		case "--match-set":
			ranged = ranged || strings.HasPrefix(value, rangesSet+"-")
		}
	}
	return to, ranged
}

// entryOf returns the Service to whose pools a chain leads.
func (v *View) entryOf(fam *familyView, name string) *serviceView {
	rules := fam.nat.chains[name]
	if _, isPool := poolScope(name); isPool && len(rules) > 0 {
		return v.serviceOf(rules)
	}
	for _, r := range rules {
		if _, isPool := poolScope(r.chain); isPool {
			return v.entryOf(fam, r.chain)
		}
	}
	return nil
}

// isIn tells whether a packet is in an ipset, by what dirs names.
func (v *View) isIn(set string, p *packet, dirs string) bool {
	found := false
	err := v.sets.list(set, func(m member, _ uint32) {
		found = found || m.has(p, dirs)
	})
	return err == nil && found
}

// has tells whether a packet is what a member of an ipset stands for.
func (m member) has(p *packet, dirs string) bool {
	first, _, _ := strings.Cut(dirs, ",")
	addr := p.dst.Addr()
	if first == "src" {
		addr = p.src.Addr()
	}
	return m.addr.Contains(addr) &&
		(m.port == 0 || m.port == p.dst.Port() && m.proto == p.proto) &&
		(!m.from.IsValid() || m.from.Contains(p.src.Addr()))
}

// Services returns every Service, sorted by name.
func (v *View) Services() ([]dataplane.ServiceView, error) {
	loads, err := v.loads()
	if err != nil {
		return nil, err
	}
	var views []dataplane.ServiceView
	for _, name := range slices.SortedFunc(maps.Keys(v.services), lb.ServiceName.Compare) {
		svc := v.services[name]
		view := dataplane.ServiceView{
			Name: name.String(), Algorithm: svc.algorithm, Kind: "rules",
			Approximation: v.approximation(svc), Backends: v.backends(svc, lb.ScopeCluster, loads[name]),
		}
		for _, fe := range svc.frontends {
			view.Frontends = append(view.Frontends, v.frontend(fe))
		}
		slices.SortStableFunc(view.Frontends, func(a, b dataplane.FrontendView) int { return cmp.Compare(a.Type, b.Type) })
		views = append(views, view)
	}
	return views, nil
}

// frontend describes a frontend. Rules do not tell addresses of load balancers from
// external IPs, unless there are source ranges.
func (v *View) frontend(fe *frontendView) dataplane.FrontendView {
	view := dataplane.FrontendView{Address: fe.String(), Type: "External"}
	vip := &packet{proto: fe.Proto, dst: fe.Addr}
	switch {
	case fe.Addr.Addr().IsUnspecified():
		view.Type = lb.NodePort.String()
	case fe.ranged:
		view.Type = lb.LoadBalancer.String()
	case v.isIn(setName(vipsSet, fe.service.name.Family), vip, "dst"):
		view.Type = lb.ClusterIP.String()
	}
	view.Flags = v.flags(fe)
	return view
}

// flags says whom a frontend leads where, in the words of the eBPF dataplane.
func (v *View) flags(fe *frontendView) (names []string) {
	rules := v.families[fe.service.name.Family].nat.chains[fe.entry]
	scope, isPool := poolScope(fe.entry)
	inside, outside := scope, scope
	if !isPool {
		for _, r := range slices.Backward(rules) {
			if sc, ok := poolScope(r.chain); ok && len(r.matches) == 0 {
				outside = sc
			}
		}
		inside = outside
		for _, r := range rules {
			if sc, ok := poolScope(r.chain); ok && len(r.matches) > 0 {
				inside = sc
			}
		}
	}
	off := slices.ContainsFunc(rules, func(r rule) bool {
		return r.chain == offClusterChain || r.chain == masqueradeChain && strings.HasPrefix(r.text, "!")
	})
	always := slices.ContainsFunc(rules, func(r rule) bool { return r.chain == masqueradeChain && len(r.matches) == 0 })
	for _, f := range []struct {
		is   bool
		name string
	}{
		{inside == lb.ScopeLocal, "inside-local"},
		{outside == lb.ScopeLocal, "outside-local"},
		{off, "masquerade-off-cluster"},
		{always, "masquerade"},
		{fe.ranged, "source-ranges"},
		{v.isSticky(fe.service), "affinity"},
	} {
		if f.is {
			names = append(names, f.name)
		}
	}
	return names
}
