// SPDX-License-Identifier: Apache-2.0

package report

import (
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// goal is what lbproxy is to reach, as a ratio within one run.
type goal struct {
	what     string
	scenario string
	measure  *measure
	own      []string // arms of lbproxy; the best counts
	other    string   // an arm, or the beginning of its name
	least    float64
}

// leasts are the algorithms that go by load.
var leasts = []string{"lbproxy-ebpf least-connection", "lbproxy-ebpf least-time"}

var goals = []goal{
	{"connections to ClusterIPs, of direct", "east-west-10k", rate, []string{"lbproxy-ebpf"}, "direct", 0.98},
	{"connections, 10,000 Services, of kube-proxy nftables", "east-west-10k", rate, []string{"lbproxy-ebpf"}, "kube-proxy-nftables", 1.1},
	{"connections, 10,000 Services, of kube-proxy iptables", "east-west-10k", rate, []string{"lbproxy-ebpf"}, "kube-proxy-iptables", 2},
	{"requests and answers on a connection, of direct", "request-response", rate, []string{"lbproxy-ebpf"}, "direct", 0.995},
	{"a stream, of direct", "streaming", throughput, []string{"lbproxy-ebpf"}, "direct", 0.995},
	{"packets to a node port, of kube-proxy nftables", "nodeport", rate, []string{"lbproxy-ebpf"}, "kube-proxy-nftables", 1.8},
	{"packets to a node port, of kube-proxy iptables", "nodeport", rate, []string{"lbproxy-ebpf"}, "kube-proxy-iptables", 2.2},
	{"p99, two of 16 backends slow: times lower than round-robin", "heterogeneous", p99, leasts, "lbproxy-ebpf round-robin", 2.5},
	{"p99, two of 16 backends slow: times lower than random", "heterogeneous", p99, leasts, "lbproxy-ebpf random", 4},
}

// named finds an arm by its label or the beginning of it, -1 if it did not run.
func (s *scene) named(label string) int {
	return slices.IndexFunc(s.Arms, func(a result.Arm) bool { return strings.HasPrefix(a.Label(), label) })
}

// reached measures a goal; not ok if the run has not what it needs.
func (g *goal) reached(scenes []*scene) (e stats.Estimate, ok bool) {
	i := slices.IndexFunc(scenes, func(s *scene) bool { return s.Name == g.scenario })
	if i < 0 {
		return e, false
	}
	s := scenes[i]
	for _, own := range g.own {
		c, has := s.against(g.measure, s.named(own), s.named(g.other))
		if has && (!ok || c.Gain.Median > e.Median) {
			e, ok = c.Gain, true
		}
	}
	return e, ok
}

// services is a goal about how cost grows with Services: the rate with n of them over
// that of another with otherN.
type services struct {
	what      string
	other     string
	n, otherN float64
	least     float64
}

var growth = []services{
	{"connections, 1 Service, of kube-proxy iptables", "kube-proxy-iptables", 1, 1, 1},
	{"connections, 30,000 Services, of kube-proxy iptables", "kube-proxy-iptables", 30_000, 30_000, 4},
	{"connections, 30,000 Services, of those with 1", "lbproxy-ebpf", 30_000, 1, 0.99},
}

func (g *services) reached(scales []*result.Scale) (e stats.Estimate, ok bool) {
	for _, s := range scales {
		if s.X != "Services" || !strings.HasSuffix(s.Name, "connections per second") {
			continue
		}
		own, other := valuesAt(s, "lbproxy-ebpf", g.n), valuesAt(s, g.other, g.otherN)
		if len(own) > 0 && len(other) > 0 {
			return stats.EstimateOf(stats.Pairs(own, other, stats.Ratio)), true
		}
	}
	return e, false
}

// valuesAt are the blocks of a curve at a number.
func valuesAt(s *result.Scale, arm string, x float64) []float64 {
	for _, series := range s.Series {
		for _, p := range series.Points {
			if strings.HasPrefix(series.Arm, arm) && p.X == x {
				return p.Values
			}
		}
	}
	return nil
}

// goalTable has the goals that the results say something of, those that are not reached
// first; nil if there are none.
func goalTable(all *gathered) *table {
	t := &table{Head: []string{"goal", "at least", "measured", "95 % interval", "reached"}, Text: []bool{true, false, false, false, true}, Deck: true}
	add := func(what string, least float64, e stats.Estimate) {
		verdict := map[int]string{-1: "no", 0: "open", 1: "yes"}[e.Sides(least)]
		t.Rows = append(t.Rows, []string{what, factor(least), factor(e.Median), interval(e, factor), verdict})
	}
	for i := range goals {
		if e, ok := goals[i].reached(all.scenes); ok {
			add(goals[i].what, goals[i].least, e)
		}
	}
	for i := range growth {
		if e, ok := growth[i].reached(all.scales); ok {
			add(growth[i].what, growth[i].least, e)
		}
	}
	if t.Rows == nil {
		return nil
	}
	slices.SortStableFunc(t.Rows, func(a, b []string) int { return compareText(a[4], b[4]) }) // no, open, yes
	return t
}
