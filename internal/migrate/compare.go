// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// The levels of differences, as those of `lbproxy check`.
const (
	Warn = "warn" // connections are served, in another way
	Fail = "fail" // connections that kube-proxy serves would not be
)

// whatBackends is a difference of where connections go.
const whatBackends = "backends"

// Difference is one thing that lbproxy does otherwise for a kind of caller.
type Difference struct {
	Level     string `json:"level"`
	Frontend  string `json:"frontend"` // address:port/PROTO; of a NodePort the unspecified address
	Service   string `json:"service"`  // namespace/name:port
	Caller    string `json:"caller"`   // pod, node or outside; empty: every one
	What      string `json:"what"`
	KubeProxy string `json:"kubeProxy"`
	Lbproxy   string `json:"lbproxy"`
}

// Options say what is compared with.
type Options struct {
	Local   lb.LocalDetector
	Node    lb.Node
	Sockets bool // processes of the node are translated when they connect: nobody masquerades them
}

// pair is one frontend of both.
type pair struct {
	key  lb.FrontendKey
	kube *frontend
	svc  *dataplane.Service
	fe   *lb.Frontend
}

// Compare tells what svcs, which lbproxy serves, differ in from rules. compared is how
// many frontends there are of either.
func Compare(rules *Rules, svcs []*dataplane.Service, opts Options) (diffs []Difference, compared int) {
	pairs := map[lb.FrontendKey]*pair{}
	for key, fe := range rules.frontends {
		pairs[key] = &pair{key: key, kube: fe}
	}
	for _, svc := range svcs {
		for i := range svc.Frontends {
			key := svc.Frontends[i].FrontendKey
			if pairs[key] == nil {
				pairs[key] = &pair{key: key}
			}
			pairs[key].svc, pairs[key].fe = svc, &svc.Frontends[i]
		}
	}
	keys := slices.SortedFunc(maps.Keys(pairs), func(a, b lb.FrontendKey) int {
		return lb.Frontend{FrontendKey: a}.Compare(lb.Frontend{FrontendKey: b})
	})
	for _, key := range keys {
		diffs = append(diffs, pairs[key].compare(rules, opts)...)
	}
	return diffs, len(pairs)
}

// service is the name for people.
func (p *pair) service() string {
	if p.svc == nil {
		return p.kube.service
	}
	name := p.svc.Name.Object.String()
	if p.svc.Name.Port != "" {
		name += ":" + p.svc.Name.Port
	}
	return name
}

func (p *pair) differs(level, caller, what, kube, ours string) Difference {
	return Difference{level, p.key.String(), p.service(), caller, what, kube, ours}
}

// compare compares one frontend.
func (p *pair) compare(rules *Rules, opts Options) (diffs []Difference) {
	const served, not = "served", "not served"
	if p.kube == nil {
		return []Difference{p.differs(Warn, "", "frontend", not, served)}
	}
	for _, c := range p.callers(opts) {
		kube := rules.outcome(p.kube, c)
		if p.svc == nil {
			level := Warn
			if len(kube.shares) > 0 {
				level = Fail
			}
			return append(diffs, p.differs(level, "", "frontend", served, not))
		}
		diffs = append(diffs, p.compareCaller(c, kube, p.outcome(c, opts), opts)...)
	}
	return merge(diffs)
}

// merge makes one of what is the same for all callers.
func merge(diffs []Difference) (merged []Difference) {
	for _, d := range diffs {
		i := slices.IndexFunc(merged, func(m Difference) bool {
			m.Caller = d.Caller
			return m == d
		})
		if i < 0 {
			merged = append(merged, d)
			continue
		}
		merged[i].Caller += ", " + d.Caller
	}
	return merged
}

func (p *pair) compareCaller(c caller, kube, ours outcome, opts Options) (diffs []Difference) {
	add := func(level, what, k, o string) {
		if k != o {
			diffs = append(diffs, p.differs(level, c.name, what, k, o))
		}
	}
	switch {
	case len(kube.shares) > 0 && len(ours.shares) == 0:
		add(Fail, whatBackends, backendsText(kube), ours.refusal)
		return diffs
	case len(kube.shares) == 0 && len(ours.shares) > 0:
		add(Warn, whatBackends, cmp.Or(kube.refusal, "not touched"), backendsText(ours))
		return diffs
	case len(kube.shares) == 0:
		add(Warn, "refusal", cmp.Or(kube.refusal, "not touched"), ours.refusal)
		return diffs
	}
	if k, o := backendsText(kube), backendsText(ours); k != o {
		add(Warn, whatBackends, k, o)
	} else if !sameShares(kube.shares, ours.shares) {
		add(Warn, "shares", sharesText(kube.shares), sharesText(ours.shares)+" by "+p.svc.Balance.Algorithm)
	}
	add(Warn, "affinity", seconds(kube.affinity), seconds(ours.affinity))
	if !opts.Sockets || c.name == outside {
		add(Warn, "source", sourceText(kube), sourceText(ours))
	}
	return diffs
}

const outside = "outside"

// callers returns one of each kind that can be told from the others.
func (p *pair) callers(opts Options) []caller {
	f := lb.FamilyOf(p.key.Addr.Addr())
	from := netip.MustParseAddr("192.0.2.1") // for documentation: nobody's, RFC 5737
	if f == lb.IPv6 {
		from = netip.MustParseAddr("2001:db8::1") // RFC 3849
	}
	if p.kube != nil && len(p.kube.ranges) > 0 {
		from = p.kube.ranges[0].Addr()
	}
	all := []caller{{name: outside, addr: from}}
	for _, r := range opts.Local.PodRanges(opts.Node) {
		if lb.FamilyOf(r.Addr()) == f {
			all = append(all, caller{name: "pod", addr: r.Addr().Next(), pod: true})
			break
		}
	}
	for _, a := range opts.Node.Addrs {
		if lb.FamilyOf(a) == f {
			all = append(all, caller{name: "node", addr: a, local: true})
			break
		}
	}
	return all
}

// outcome tells what lbproxy does for a caller.
func (p *pair) outcome(c caller, opts Options) outcome {
	scope := p.fe.Outside
	if c.name != outside {
		scope = p.fe.Inside
	}
	pool := p.svc.Pool(scope)
	out := outcome{shares: map[netip.AddrPort]float64{}, affinity: int(p.svc.Terms.Affinity.Seconds())}
	total := 0.0
	for _, b := range pool.Backends {
		total += float64(b.Weight)
	}
	for _, b := range pool.Backends {
		if b.Weight > 0 {
			out.shares[b.Addr] = float64(b.Weight) / total
		}
	}
	if len(out.shares) == 0 {
		out.refusal = pool.Empty.String()
		return out
	}
	if p.fe.Ranged && !slices.ContainsFunc(p.svc.Terms.SourceRanges, func(r netip.Prefix) bool { return r.Contains(c.addr) }) {
		return outcome{refusal: lb.Drop.String()}
	}
	knows := opts.Local.Knows(lb.FamilyOf(c.addr), opts.Node)
	out.masquerade = p.fe.Masquerade == lb.MasqueradeAlways || p.fe.Masquerade == lb.MasqueradeOffCluster && knows && !c.pod
	return out
}

func backendsText(o outcome) string {
	names := make([]string, 0, len(o.shares))
	for _, b := range slices.SortedFunc(maps.Keys(o.shares), netip.AddrPort.Compare) {
		names = append(names, b.String())
	}
	return firstOf(names)
}

// sameShares allows for what kube-proxy's probabilities, of 10 digits, are rounded by.
func sameShares(a, b map[netip.AddrPort]float64) bool {
	for k, v := range a {
		if math.Abs(v-b[k]) > 0.001 {
			return false
		}
	}
	return len(a) == len(b)
}

func sharesText(shares map[netip.AddrPort]float64) string {
	lo, hi := 1.0, 0.0
	for _, v := range shares {
		lo, hi = min(lo, v), max(hi, v)
	}
	if hi-lo < 0.001 {
		return "equal"
	}
	return fmt.Sprintf("%.3g%% to %.3g%%", 100*lo, 100*hi)
}

func seconds(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprintf("%d s", n)
}

func sourceText(o outcome) string {
	if o.masquerade {
		return "the node's"
	}
	return "the client's"
}

// Stale tells why kube-proxy's rules cannot serve svcs, which lbproxy serves: there are
// none, or they are of another time, as those of a kube-proxy that was stopped and started,
// but has not written them yet. nil: they can.
func Stale(rules *Rules, svcs []*dataplane.Service, opts Options) error {
	if name, n := rules.missing(svcs); n > 0 {
		return fmt.Errorf("kube-proxy has no rules for %d frontends of Services with endpoints, such as %s: wait, or look at its log", n, name)
	}
	diffs, _ := Compare(rules, svcs, opts)
	var names []string
	for _, d := range diffs {
		if (d.Level == Fail || d.What == whatBackends) && !slices.Contains(names, d.Service) {
			names = append(names, d.Service)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("kube-proxy's rules are not of now: other endpoints, or other addresses, for %d Services: %s; "+
		"wait, look at its log, and at lbproxy migrate --check", len(names), firstOf(names))
}

// firstOf joins as many as people read.
func firstOf(names []string) string {
	const most = 8
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), len(names)-most)
	}
	return strings.Join(names, " ")
}

// missing counts the frontends of svcs with endpoints that kube-proxy sends nobody from,
// and names one.
func (r *Rules) missing(svcs []*dataplane.Service) (first string, n int) {
	for _, svc := range svcs {
		if len(svc.Cluster.Backends) == 0 {
			continue
		}
		for i := range svc.Frontends {
			fe := &svc.Frontends[i]
			if at := r.frontends[fe.FrontendKey]; at != nil && at.chain != "" || len(svc.Pool(fe.Inside).Backends) == 0 {
				continue
			}
			if n++; n == 1 {
				first = fe.String()
			}
		}
	}
	return first, n
}
