// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

func compareText(a, b string) int { return strings.Compare(a, b) }

// Comparison is lbproxy beside another proxy, by one measure.
type Comparison struct {
	Scenario string
	Measure  *measure
	Arm      string // of lbproxy
	Peer     string
	Value    float64 // median over the blocks
	Other    float64
	// Gain is how many times better lbproxy is, by block; of counts, how many fewer it has.
	Gain   stats.Estimate
	Versus string // the name of the other proxy
	best   bool   // both arms are the best of their proxies
}

// Verdict is 1 if lbproxy wins, -1 if it loses, and 0 if the blocks do not tell.
func (c *Comparison) Verdict() int {
	if c.Measure.counts {
		return c.Gain.Sides(0)
	}
	return c.Gain.Sides(1)
}

// alike are the names that other proxies have for an algorithm of lbproxy.
var alike = map[string]string{
	"roundrobin": "round-robin", "least_conn": "least-connection", "leastconn": "least-connection",
	"source": "ip-hash", "random two": "power-of-two", "random(2)": "power-of-two",
}

// compare makes the comparisons of a scenario: of each dataplane of lbproxy with each other
// proxy, by the best arms of both, and by arms with the same algorithm.
func compare(sc *scene) []Comparison {
	var out []Comparison
	for _, m := range sc.judged() {
		for _, own := range []string{"lbproxy-ebpf", "lbproxy-iptables"} {
			for _, peer := range sc.peers() {
				for i, pair := range sc.pairs(m, own, peer) {
					if c, ok := sc.against(m, pair[0], pair[1]); ok {
						c.Versus, c.best = peer, i == 0
						out = append(out, c)
					}
				}
			}
		}
	}
	sortComparisons(out)
	return out
}

// pairs are the arms that are compared. The first two are the best of both proxies.
func (s *scene) pairs(m *measure, own, peer string) [][2]int {
	a, b := s.best(m, own), s.best(m, peer)
	if a < 0 || b < 0 {
		return nil
	}
	out := [][2]int{{a, b}}
	for i := range s.Arms {
		name := s.Arms[i].Algorithm
		if other, ok := alike[name]; ok {
			name = other
		}
		k := slices.IndexFunc(s.Arms, func(a result.Arm) bool { return a.Name == own && a.Algorithm == name })
		if s.Arms[i].Name == peer && k >= 0 && !slices.Contains(out, [2]int{k, i}) {
			out = append(out, [2]int{k, i})
		}
	}
	return out
}

// sortComparisons puts those that lbproxy loses first, and the worst of these at the top.
func sortComparisons(cs []Comparison) {
	slices.SortStableFunc(cs, func(a, b Comparison) int {
		return cmp.Or(cmp.Compare(a.Verdict(), b.Verdict()), cmp.Compare(a.order(), b.order()))
	})
}

// order is the gain as a factor, of counts too.
func (c *Comparison) order() float64 {
	if c.Measure.counts {
		return (c.Other + 1) / (c.Value + 1)
	}
	return c.Gain.Median
}

// judged are the measures that proxies are compared by: what the scenario is about, and
// what it costs.
func (s *scene) judged() []*measure {
	use := []*measure{p99, cpu, lost, moved}
	if !s.paced {
		use = []*measure{rate, throughput, p99, connectP99, cpu, cpuBytes, lost}
	}
	return slices.DeleteFunc(use, func(m *measure) bool { return !slices.Contains(s.measures, m) })
}

// peersOf are the other proxies, and what has none.
func (s *scene) peers() []string {
	var out []string
	for _, a := range s.Arms {
		if !strings.HasPrefix(a.Name, "lbproxy") && a.Name != sim.Name && !slices.Contains(out, a.Name) {
			out = append(out, a.Name)
		}
	}
	return out
}

// best is the arm of a proxy whose median is the best.
func (s *scene) best(m *measure, name string) int {
	found, value := -1, nan
	for i := range s.Arms {
		if s.Arms[i].Name != name || strings.HasPrefix(s.Arms[i].Algorithm, "oracle") {
			continue
		}
		v := stats.Median(s.of(i, m))
		if found < 0 || m.higher && v > value || !m.higher && v < value {
			found, value = i, v
		}
	}
	return found
}

// against compares two arms. It is not ok if there is nothing to compare.
func (s *scene) against(m *measure, arm, peer int) (c Comparison, ok bool) {
	if arm < 0 || peer < 0 {
		return c, false
	}
	own, other := s.of(arm, m), s.of(peer, m)
	gain := stats.Pairs(other, own, stats.Ratio)
	switch {
	case m.counts:
		gain = stats.Pairs(other, own, stats.Difference)
	case m.higher:
		gain = stats.Pairs(own, other, stats.Ratio)
	}
	gain = slices.DeleteFunc(gain, func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) })
	if len(gain) == 0 {
		return c, false
	}
	c = Comparison{
		Scenario: s.Name, Measure: m, Arm: s.Arms[arm].Label(), Peer: s.Arms[peer].Label(),
		Value: stats.Median(own), Other: stats.Median(other), Gain: stats.EstimateOf(gain),
	}
	return c, !m.counts || c.Value != 0 || c.Other != 0
}
