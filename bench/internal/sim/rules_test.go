// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"
	"testing"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// withRules runs the only case of a scenario in YAML with the engine iptables.
func withRules(t *testing.T, text string) *Result {
	t.Helper()
	sc, err := scenario.Parse([]byte(text))
	if err != nil {
		t.Fatalf("scenario: %v\n%s", err, text)
	}
	res, err := simulateCase(sc, &sc.Algorithms[0], sc.Load[0], sc.Nodes[0], newRules(sc.Seed))
	if err != nil {
		t.Fatalf("simulate: %v\n%s", err, text)
	}
	return res
}

// TestRulesShareByWeight: every algorithm whose shares rules can have exactly has them,
// for all nodes together.
func TestRulesShareByWeight(t *testing.T) {
	const requests = 40000
	weights := []float64{3, 3, 3, 1, 1, 7}
	for name, margin := range map[string]float64{"random": 5, "round-robin": 0.2, "hash": 0} {
		var got [6]int
		r := runOf(t, scenarioOf(map[string]string{
			"seed": "3", "requests": "40000", "load": "[0.5]", "nodes": "[4]", "clients": "{count: 20000}",
			"backends":   "[{name: a, count: 3, weight: 3}, {name: b, count: 2}, {name: c, weight: 7}]",
			"algorithms": "[{name: " + name + "}]",
		}), newRules(3))
		r.picked = func(_, backend int) { got[backend]++ }
		if err := r.simulate(); err != nil {
			t.Fatal(err)
		}
		for b, w := range weights {
			share := w / 18
			off := margin*math.Sqrt(requests*share*(1-share)) + 1
			if name == "hash" { // what places may miss, and what clients differ by
				off = 0.1 * requests * share
			}
			if want := requests * share; math.Abs(float64(got[b])-want) > off {
				t.Errorf("%s: backend %d has %d requests, want %.0f +- %.0f", name, b, got[b], want, off)
			}
		}
	}
}

// TestRulesComeNear: with rules that are rewritten once a second, what compares loads is
// better than random, and no better than the algorithm that sees each connection.
func TestRulesComeNear(t *testing.T) {
	for _, nodes := range []string{"[1]", "[3]"} {
		for _, name := range []string{"least-connection", "power-of-two"} {
			text := func(name string) string {
				return scenarioOf(map[string]string{
					"seed": "1", "requests": "30000", "warmup": "0.2", "load": "[0.8]", "nodes": nodes, "discipline": "ps",
					"service": "{mean: 2s}", "backends": "[{name: a, count: 18}, {name: b, count: 2, speed: 0.6}]",
					"algorithms": "[{name: " + name + "}]",
				})
			}
			exact, near, random := simulated(t, text(name)), withRules(t, text(name)), simulated(t, text("random"))
			if near.P99 > random.P99/2 || near.P99 < exact.P99*0.95 {
				t.Errorf("%s, nodes %s: p99 %.1f s with rules, want from %.1f (exact) to half of %.1f (random)",
					name, nodes, near.P99, exact.P99, random.P99)
			}
		}
	}
}

// TestRulesFollowChanges: backends that are not there, or have no weight, get nothing, and
// one in slow start less than its share.
func TestRulesFollowChanges(t *testing.T) {
	for _, name := range []string{"random", "round-robin", "ip-hash", "power-of-two", "least-connection", "least-time"} {
		var first, later [9]int
		r := runOf(t, scenarioOf(map[string]string{
			"seed": "2", "requests": "20000", "load": "[0.5]", "nodes": "[2]", "service": "{mean: 100ms}", "slowStart": "400s",
			"backends":   "[{name: a, count: 6}, {name: b}, {name: c, weight: 0}, {name: d, absent: true}]",
			"changes":    "[{at: 100s, action: remove, backends: b}, {at: 100s, action: add, backends: d}]",
			"algorithms": "[{name: " + name + "}]",
		}), newRules(2))
		r.picked = func(_, backend int) {
			if r.now < 100 {
				first[backend]++
			} else {
				later[backend]++
			}
		}
		if err := r.simulate(); err != nil {
			t.Fatal(err)
		}
		if first[6] == 0 || first[7] > 0 || first[8] > 0 || later[6] > 0 || later[7] > 0 || later[8] == 0 {
			t.Errorf("%s: requests before %v and after %v, want none for weight 0 and for who is not there", name, first, later)
		}
		if name != "ip-hash" && later[8] > later[0]*2/3 {
			t.Errorf("%s: a backend in slow start has %d requests, another one %d", name, later[8], later[0])
		}
	}
}
