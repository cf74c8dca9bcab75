// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// TestOracles: three backends, of speed 1, of speed 0.2, and of speed 0.5 with
// four cores, and how many requests each has.
func TestOracles(t *testing.T) {
	for _, tc := range []struct {
		name     string
		oracle   string
		requests [3]int32
		want     int32
	}{
		{"fewest requests, whatever the speed", scenario.OracleJSQ, [3]int32{2, 1, 2}, 1},
		{"1 s, 5 s or 2 s", scenario.OracleSED, [3]int32{0, 0, 0}, 0},
		{"4 s, 5 s or 2 s on a free core", scenario.OracleSED, [3]int32{3, 0, 3}, 2},
		{"4 s, 5 s or 4.5 s", scenario.OracleSED, [3]int32{3, 0, 8}, 0},
		{"6 s, 5 s or 5.5 s", scenario.OracleSED, [3]int32{5, 0, 10}, 1},
	} {
		r := runOf(t, scenarioOf(map[string]string{
			"requests": "1", "load": "[0.5]", "algorithms": "[{name: " + tc.oracle + "}]",
			"backends": "[{}, {speed: 0.2}, {speed: 0.5, cores: 4}]",
		}), &reference{})
		for b, n := range tc.requests {
			r.global.add(&r.pool, int32(b), n)
		}
		for range 20 {
			member, err := r.choose(&r.nodes[0])
			if err != nil || r.pool.backends[member] != tc.want {
				t.Fatalf("%s: backend %d, %v; want %d", tc.name, member, err, tc.want)
			}
		}
	}
}

// TestOraclesAvoidFailedBackends, and the one that knows speeds those that are
// frozen.
func TestOraclesAvoidFailedBackends(t *testing.T) {
	for _, oracle := range []string{scenario.OracleJSQ, scenario.OracleSED} {
		r := runOf(t, scenarioOf(map[string]string{
			"requests": "5000", "load": "[0.4]", "algorithms": "[{name: " + oracle + "}]",
			"backends": "[{name: good, count: 2}, {name: bad}, {name: ice}]",
			"changes":  "[{at: 0s, action: fail, backends: bad}, {at: 0s, action: freeze, backends: ice}]",
		}), &reference{})
		picks := make([]int, 4)
		r.picked = func(_, backend int) { picks[backend]++ }
		if err := r.simulate(); err != nil {
			t.Fatal(err)
		}
		if picks[2] != 0 || oracle == scenario.OracleSED && picks[3] != 0 {
			t.Errorf("%s: picks %v, want none of the failed and the frozen", oracle, picks)
		}
	}
}

// TestSlowStartLimitsTheShare: of a backend that joins others with long
// connections, at every moment and after.
func TestSlowStartLimitsTheShare(t *testing.T) {
	sc, err := Read("../../scenarios/slow-start.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i := range sc.Algorithms {
		a := &sc.Algorithms[i]
		if a.Label != "catch up" && a.Label != "at once" {
			continue
		}
		res, err := simulateCase(sc, a, sc.Load[0], 1, &reference{})
		if err != nil {
			t.Fatal(err)
		}
		if limited := res.WatchMax <= 1.5; limited != a.CatchUp {
			t.Errorf("%s: the largest share in a window is %.2f of the fair one", a.Label, res.WatchMax)
		}
	}
}

// TestLeastTimeAgainstTheOracle: the target of issue 3 in the simulator.
func TestLeastTimeAgainstTheOracle(t *testing.T) {
	sc, err := Read("../../scenarios/two-slow-of-16.yaml")
	if err != nil {
		t.Fatal(err)
	}
	sc.Requests = 100000
	p99 := map[string]float64{}
	for i := range sc.Algorithms {
		res, err := simulateCase(sc, &sc.Algorithms[i], 0.8, 1, &reference{})
		if err != nil {
			t.Fatal(err)
		}
		p99[res.Algorithm] = res.P99
	}
	for _, name := range []string{scenario.LeastConnection, scenario.LeastTime} {
		if got, limit := p99[name], 1.1*p99[scenario.OracleJSQ]; got > limit {
			t.Errorf("p99 of %s is %.4f s, want at most 1.1 of the oracle's: %.4f s", name, got, limit)
		}
		if got := p99["round-robin"] / p99[name]; got < 2.5 {
			t.Errorf("p99 of round-robin is %.2f of that of %s, want 2.5 or more", got, name)
		}
	}
}
