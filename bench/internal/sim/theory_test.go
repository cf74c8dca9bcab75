// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// simulated runs the only case of a scenario in YAML.
func simulated(t *testing.T, text string) *Result {
	t.Helper()
	sc, err := scenario.Parse([]byte(text))
	if err != nil {
		t.Fatalf("scenario: %v\n%s", err, text)
	}
	res, err := simulateCase(sc, &sc.Algorithms[0], sc.Load[0], sc.Nodes[0], &reference{})
	if err != nil {
		t.Fatalf("simulate: %v\n%s", err, text)
	}
	return res
}

// scenarioOf returns a scenario as text: a value in YAML for each field of
// Scenario.
func scenarioOf(fields map[string]string) string {
	text := "name: test\n"
	for field, value := range fields {
		text += field + ": " + value + "\n"
	}
	return text
}

// erlangC returns the mean sojourn time of M/M/c, in mean service times.
// Source: Kleinrock, "Queueing Systems" volume 1, 1975, section 3.5.
func erlangC(c int, rho float64) float64 {
	a, term, sum := float64(c)*rho, 1.0, 0.0
	for k := range c {
		sum += term
		term *= a / float64(k+1)
	}
	wait := term / (1 - rho) / (sum + term/(1-rho))
	return 1 + wait/(float64(c)*(1-rho))
}

// supermarket returns the mean sojourn time when each request joins the shorter
// of d random queues of very many, in mean service times.
// Source: Mitzenmacher, "The power of two choices in randomized load balancing",
// IEEE TPDS 12(10), 2001.
func supermarket(d int, rho float64) float64 {
	var sum float64
	for i := 1; i < 12; i++ {
		sum += math.Pow(rho, (math.Pow(float64(d), float64(i))-float64(d))/float64(d-1))
	}
	return sum
}

// pollaczek returns the mean sojourn time of M/G/1 with first come, first served,
// where square is the mean square of the service time over that of its mean.
func pollaczek(rho, square float64) float64 { return 1 + rho*square/(2*(1-rho)) }

// deterministicArrivals returns the mean sojourn time of D/M/1.
func deterministicArrivals(rho float64) float64 {
	sigma := 0.5
	for range 1000 {
		sigma = math.Exp(-(1 - sigma) / rho)
	}
	return 1 / (1 - sigma)
}

// TestTheory compares mean sojourn times, in mean service times, with formulas.
// The seeds are fixed, so that a pass is a pass. With -short it is a tenth of the
// requests, and three times the tolerance.
func TestTheory(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fields map[string]string
		want   float64
	}{
		{"M/M/1", map[string]string{
			"requests": "1000000", "load": "[0.8]", "backends": "[{}]", "algorithms": "[{name: random}]",
		}, 5},
		{"M/M/1 at another speed and weight", map[string]string{
			"requests": "500000", "load": "[0.5]", "backends": "[{speed: 4, weight: 9}]", "algorithms": "[{name: random}]",
		}, 2. / 4},
		{"random over 20 backends is M/M/1", map[string]string{
			"requests": "1000000", "load": "[0.8]", "backends": "[{count: 20}]", "algorithms": "[{name: random}]",
		}, 5},
		{"random from 30 nodes is M/M/1", map[string]string{
			"requests": "500000", "load": "[0.7]", "backends": "[{count: 20}]", "nodes": "[30]", "algorithms": "[{name: random}]",
		}, 1 / 0.3},
		{"random by weights that are the speeds is M/M/1 at each", map[string]string{
			// Half the requests go to the fast one, whose times are a fourth.
			"requests": "1000000", "load": "[0.7]", "backends": "[{count: 4}, {speed: 4, weight: 4}]", "algorithms": "[{name: random}]",
		}, (1 + 1./4) / 2 / 0.3},
		{"M/D/1", map[string]string{
			"requests": "500000", "load": "[0.8]", "backends": "[{}]", "algorithms": "[{name: random}]",
			"service": "{distribution: deterministic}",
		}, pollaczek(0.8, 1)},
		{"D/M/1", map[string]string{
			"requests": "500000", "load": "[0.8]", "backends": "[{}]", "algorithms": "[{name: random}]",
			"arrivals": "{process: deterministic}",
		}, deterministicArrivals(0.8)},
		{"M/G/1, lognormal", map[string]string{
			"requests": "1000000", "load": "[0.5]", "backends": "[{}]", "algorithms": "[{name: random}]",
			"service": "{distribution: lognormal, cv: 0.8}",
		}, pollaczek(0.5, 1+0.8*0.8)},
		{"M/G/1, bimodal", map[string]string{
			"requests": "1000000", "load": "[0.5]", "backends": "[{}]", "algorithms": "[{name: random}]",
			"service": "{distribution: bimodal, long: 0.1, span: 5}",
		}, pollaczek(0.5, (0.9+0.1*25)/(1.4*1.4))},
		{"M/G/1, bounded Pareto", map[string]string{
			"requests": "2000000", "load": "[0.5]", "backends": "[{}]", "algorithms": "[{name: random}]",
			"service": "{distribution: pareto, alpha: 1.5, span: 50}",
		}, pollaczek(0.5, paretoSquare(1.5, 50))},
		{"M/G/1 with processor sharing does not depend on the distribution", map[string]string{
			"requests": "1000000", "load": "[0.6]", "backends": "[{}]", "algorithms": "[{name: random}]",
			"service": "{distribution: bimodal, long: 0.1, span: 10}", "discipline": "ps",
		}, 1 / 0.4},
		{"M/M/c", map[string]string{
			"requests": "500000", "load": "[0.8]", "backends": "[{cores: 8}]", "algorithms": "[{name: random}]",
		}, erlangC(8, 0.8)},
		{"M/M/c with processor sharing is M/M/c", map[string]string{
			"requests": "500000", "load": "[0.8]", "backends": "[{cores: 8}]", "algorithms": "[{name: random}]",
			"discipline": "ps",
		}, erlangC(8, 0.8)},
		{"power-of-two over 800 backends is the supermarket at 0.9", map[string]string{
			"requests": "1500000", "load": "[0.9]", "backends": "[{count: 800}]", "algorithms": "[{name: power-of-two}]",
		}, supermarket(2, 0.9)},
		{"power-of-two over 500 backends is the supermarket at 0.7", map[string]string{
			"requests": "500000", "load": "[0.7]", "backends": "[{count: 500}]", "algorithms": "[{name: power-of-two}]",
		}, supermarket(2, 0.7)},
		{"comparing 3 random of 500 is the supermarket with three choices", map[string]string{
			"requests": "500000", "load": "[0.8]", "backends": "[{count: 500}]",
			"algorithms": "[{name: least-connection, trial: {compare: 3, scatter: true}}]",
		}, supermarket(3, 0.8)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			fields := map[string]string{"seed": "1", "warmup": "0.1"}
			for k, v := range tc.fields {
				fields[k] = v
			}
			tolerance := 0.02
			if testing.Short() {
				fields["requests"] = strings.TrimSuffix(fields["requests"], "0")
				tolerance = 0.06
			}
			res := simulated(t, scenarioOf(fields))
			got := res.Mean / 0.01
			t.Logf("mean sojourn %.4f, theory %.4f: %+.2f %%", got, tc.want, 100*(got/tc.want-1))
			if math.Abs(got/tc.want-1) > tolerance {
				t.Errorf("mean sojourn is %.4f service times, want %.4f within %.0f %%", got, tc.want, 100*tolerance)
			}
		})
	}
}

// paretoSquare returns the mean square of a bounded Pareto distribution over the
// square of its mean.
func paretoSquare(alpha, span float64) float64 {
	tail := 1 - math.Pow(span, -alpha)
	square := alpha / (2 - alpha) * (math.Pow(span, 2-alpha) - 1) / tail
	mean := scenario.BoundedParetoMean(alpha, span)
	return square / (mean * mean)
}

// TestShortestQueueIsBetweenItsBounds: a common queue is better than to join the
// shortest, which is better than the shorter of two.
func TestShortestQueueIsBetweenItsBounds(t *testing.T) {
	for _, name := range []string{scenario.OracleJSQ, scenario.LeastConnection} {
		res := simulated(t, scenarioOf(map[string]string{
			"seed": "1", "warmup": "0.1", "requests": "200000", "load": "[0.9]", "backends": "[{count: 50}]",
			"algorithms": "[{name: " + name + "}]",
		}))
		got, low, high := res.Mean/0.01, erlangC(50, 0.9), supermarket(2, 0.9)
		t.Logf("%s: mean sojourn %.3f, a common queue %.3f, the shorter of two %.3f", name, got, low, high)
		if got < low || got > 0.7*high {
			t.Errorf("%s: mean sojourn %.3f, want %.3f to %.3f", name, got, low, 0.7*high)
		}
	}
}
