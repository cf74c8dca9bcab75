// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// loads returns how many connections and flows the backends of each Service have, by what
// connection tracking knows.
func (v *View) loads() (map[lb.ServiceName]map[netip.AddrPort]uint64, error) {
	loads := map[lb.ServiceName]map[netip.AddrPort]uint64{}
	err := v.eachFlow(func(_ lb.Family, fl flow) {
		fe := v.frontendOf(lb.FrontendKey{Addr: fl.frontend, Proto: fl.proto})
		if fe == nil || fl.ended() {
			return
		}
		if loads[fe.service.name] == nil {
			loads[fe.service.name] = map[netip.AddrPort]uint64{}
		}
		loads[fe.service.name][fl.backend]++
	})
	return loads, err
}

// eachFlow calls each for what netfilter sends elsewhere.
func (v *View) eachFlow(each func(lb.Family, flow)) error {
	for _, f := range families {
		for _, proto := range []lb.Proto{lb.TCP, lb.UDP, lb.SCTP} {
			if v.families[f] == nil {
				continue
			}
			if err := flows(f, proto, func(fl flow) { each(f, fl) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// frontendOf returns the frontend at an address: that very one, or a node port.
func (v *View) frontendOf(k lb.FrontendKey) *frontendView {
	if fe := v.owners[k]; fe != nil {
		return fe
	}
	if !v.isLocal(k.Addr.Addr()) {
		return nil
	}
	k.Addr = netip.AddrPortFrom(lb.FamilyOf(k.Addr.Addr()).Unspecified(), k.Addr.Port())
	return v.owners[k]
}

// Connections returns at most limit connections and flows to frontends; 0 means all. How
// long they have been idle is not known.
func (v *View) Connections(limit int) ([]dataplane.ConnectionView, error) {
	var views []dataplane.ConnectionView
	err := v.eachFlow(func(_ lb.Family, fl flow) {
		if limit > 0 && len(views) >= limit || v.frontendOf(lb.FrontendKey{Addr: fl.frontend, Proto: fl.proto}) == nil {
			return
		}
		views = append(views, dataplane.ConnectionView{
			Proto: fl.proto.String(), Client: fl.client.String(), Frontend: fl.frontend.String(), Backend: fl.backend.String(),
			State: flowState(&fl),
		})
	})
	return views, err
}

func flowState(fl *flow) string {
	switch {
	case fl.ended():
		return "closed"
	case fl.replied:
		return "established"
	}
	return "opening"
}

// backends returns the backends of a Service, sorted by address: those of its pools, and
// those that only have connections. What is expected of them is that of the pool sc.
func (v *View) backends(svc *serviceView, sc lb.Scope, live map[netip.AddrPort]uint64) []dataplane.BackendView {
	var shares [2]map[netip.AddrPort]float64
	all := map[netip.AddrPort]bool{}
	for scope, name := range svc.pools {
		shares[scope] = map[netip.AddrPort]float64{}
		v.share(svc, name, 1, shares[scope])
		for be := range shares[scope] {
			all[be] = true
		}
	}
	total := uint64(0)
	for be, n := range live {
		all[be] = true
		total += n
	}
	views := make([]dataplane.BackendView, 0, len(all))
	for _, be := range slices.SortedFunc(maps.Keys(all), netip.AddrPort.Compare) {
		_, cluster := shares[lb.ScopeCluster][be]
		_, local := shares[lb.ScopeLocal][be]
		view := dataplane.BackendView{
			Address: be.String(), State: "active", Pools: poolNames(cluster, local),
			Live: live[be], Expected: shares[sc][be],
		}
		if !cluster && !local {
			view.State = "leaving"
		}
		if total > 0 {
			view.Share = float64(live[be]) / float64(total)
		}
		views = append(views, view)
	}
	return views
}

func poolNames(cluster, local bool) string {
	switch {
	case cluster && local:
		return "both"
	case cluster:
		return "cluster"
	case local:
		return "local"
	}
	return "none"
}

// share adds to shares what backends get of new connections that come to a chain of a
// pool, which are a part of all.
func (v *View) share(svc *serviceView, name string, part float64, shares map[netip.AddrPort]float64) {
	left := part
	var head string       // of the programs under way
	var taken [][2]uint64 // of their hashes
	var mass float64      // that came to the first of them
	for _, r := range v.families[svc.name.Family].nat.chains[name] {
		c := chanceOf(r)
		if c.sticky || r.target != "DNAT" && !r.gone {
			continue // it is for clients that have a backend, or comes back
		}
		got := left * c.part
		if c.program != "" {
			if c.program != head {
				head, taken, mass = c.program, nil, left
			}
			before := width(taken)
			taken = union(append(taken, c.spans...))
			got = mass * (width(taken) - before) / (1 << 32)
		}
		left -= got
		if r.target == "DNAT" {
			shares[r.to] += max(0, got)
		} else {
			v.share(svc, r.chain, got, shares)
		}
	}
}

// chance is how a rule takes its part of the connections that come to it.
type chance struct {
	part    float64     // of all of them
	program string      // or by a hash: how that is computed
	spans   [][2]uint64 // and which ones it takes, first and behind the last
	sticky  bool        // or who is in an ipset
}

func chanceOf(r rule) chance {
	c := chance{part: 1}
	words := splitRule(r.text)
	for i := 0; i+1 < len(words); i++ {
		switch value := words[i+1]; words[i] {
		case "--probability":
			if p, err := strconv.ParseFloat(value, 64); err == nil {
				c.part *= p
			}
		case "--every":
			if n, err := strconv.Atoi(value); err == nil && n > 0 {
				c.part /= float64(n)
			}
		case "--match-set":
			c.sticky = true
		case "--bytecode":
			c.program, c.spans = spansOf(value)
		}
	}
	return c
}

// spansOf splits a program, as hasher makes them, into what computes a hash and the
// hashes for which it is true.
func spansOf(text string) (head string, spans [][2]uint64) {
	const ifNotBelow, always = "53 ", "5 "
	lines := strings.Split(strings.TrimSuffix(text, ","), ",")
	var bounds []uint64
	i := 1 // behind their number
	for ; i < len(lines) && !strings.HasPrefix(lines[i], ifNotBelow) && !strings.HasPrefix(lines[i], always); i++ {
	}
	head = strings.Join(lines[min(1, len(lines)):i], ",")
	for ; i < len(lines); i++ {
		fields := strings.Fields(lines[i])
		if len(fields) != 4 || fields[0] != "53" && fields[0] != "5" {
			break
		}
		bound := uint64(1) << 32
		if k, err := strconv.ParseUint(fields[3], 10, 32); err == nil && fields[0] == "53" {
			bound = k
		}
		bounds = append(bounds, bound)
	}
	for pair := range slices.Chunk(bounds, 2) {
		if len(pair) == 2 {
			spans = append(spans, [2]uint64{pair[0], pair[1]})
		}
	}
	return head, spans
}

// union joins spans that overlap.
func union(spans [][2]uint64) (out [][2]uint64) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
	for _, s := range spans {
		if n := len(out); n > 0 && s[0] <= out[n-1][1] {
			out[n-1][1] = max(out[n-1][1], s[1])
			continue
		}
		out = append(out, s)
	}
	return out
}

func width(spans [][2]uint64) (sum float64) {
	for _, s := range spans {
		sum += float64(s[1] - s[0])
	}
	return sum
}

// isSticky tells whether clients keep their backends.
func (v *View) isSticky(svc *serviceView) bool {
	for _, name := range svc.pools {
		for _, r := range v.families[svc.name.Family].nat.chains[name] {
			if chanceOf(r).sticky {
				return true
			}
		}
	}
	return false
}

// approximation returns what of a Service's algorithm is not exact, as it was announced.
func (v *View) approximation(svc *serviceView) string {
	kinds := map[string]algo.Kind{
		"round-robin": algo.Seq, "hash": algo.Hash, "ip-hash": algo.Hash,
		"least-connection": algo.Least, "power-of-two": algo.Two, "least-time": algo.Few,
	}
	kind, known := kinds[svc.algorithm]
	if !known || v.isExact(svc, kind) {
		return ""
	}
	if kind == algo.Seq && v.takesTurns(svc) {
		return turnsInGroups()
	}
	r := poolRenderer{poolSpec: poolSpec{table: algo.Table{Kind: kind}}}
	return r.announcement()
}

// isExact tells whether the rules of a Service's pools leave nothing to chance that its
// algorithm does not.
func (v *View) isExact(svc *serviceView, kind algo.Kind) bool {
	if kind != algo.Seq && kind != algo.Hash {
		return len(v.drawn(svc)) == 0
	}
	return !slices.ContainsFunc(v.drawn(svc), func(r rule) bool { return strings.Contains(r.text, " random ") })
}

// takesTurns tells whether backends take turns within groups that chance chooses.
func (v *View) takesTurns(svc *serviceView) bool {
	fam := v.families[svc.name.Family]
	return slices.ContainsFunc(v.drawn(svc), func(r rule) bool {
		for depth := 0; r.gone && depth < 8; depth++ { // groups may have groups
			rules := fam.nat.chains[r.chain]
			if len(rules) == 0 {
				return false
			}
			if strings.Contains(rules[0].text, "--every") {
				return true
			}
			r = rules[0]
		}
		return false
	})
}

// drawn returns the rules of a Service's pools that take a part of what comes to them.
func (v *View) drawn(svc *serviceView) (rules []rule) {
	for _, name := range svc.pools {
		for _, r := range v.families[svc.name.Family].nat.chains[name] {
			if c := chanceOf(r); c.part < 1 || c.program != "" {
				rules = append(rules, r)
			}
		}
	}
	return rules
}
