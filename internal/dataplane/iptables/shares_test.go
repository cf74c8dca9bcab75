// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
)

const tiny = 1e-9

func near(got, want []float64, within float64) bool {
	return len(got) == len(want) && !slices.ContainsFunc(got, math.IsNaN) &&
		slices.EqualFunc(got, want, func(a, b float64) bool { return math.Abs(a-b) <= within })
}

func TestWaterFill(t *testing.T) {
	for _, tc := range []struct {
		name            string
		active, weights []float64
		arrivals        float64
		want            []float64
	}{
		{"equal loads go by weight", []float64{0, 0, 0}, []float64{1, 2, 1}, 8, []float64{0.25, 0.5, 0.25}},
		{"level loads go by weight", []float64{5, 10, 5}, []float64{1, 2, 1}, 8, []float64{0.25, 0.5, 0.25}},
		{"the lowest gets all", []float64{0, 10}, []float64{1, 1}, 10, []float64{1, 0}},
		{"then both", []float64{0, 10}, []float64{1, 1}, 30, []float64{20.0 / 30, 10.0 / 30}},
		{"the middle one joins", []float64{0, 4, 100}, []float64{1, 1, 1}, 8, []float64{0.75, 0.25, 0}},
		{"weight 0 gets nothing", []float64{0, 7}, []float64{0, 1}, 3, []float64{0, 1}},
		{"nobody", []float64{1, 2}, []float64{0, 0}, 3, []float64{0, 0}},
		{"nothing is expected", []float64{3, 3, 4}, []float64{1, 3, 1}, 0, []float64{0, 1, 0}},
		{"nothing is expected, a tie", []float64{1, 3, 4}, []float64{1, 3, 1}, 0, []float64{0.25, 0.75, 0}},
		{"less than rounding", []float64{1e18, 1e18}, []float64{1, 3}, 1e-3, []float64{0, 1}},
		{"no members", nil, nil, 1, nil},
	} {
		if got := waterFill(tc.active, tc.weights, tc.arrivals); !near(got, tc.want, tiny) {
			t.Errorf("%s: waterFill(%v, %v, %v) = %v, want %v", tc.name, tc.active, tc.weights, tc.arrivals, got, tc.want)
		}
	}
}

func TestRankShares(t *testing.T) {
	for _, tc := range []struct {
		name    string
		cost, p []float64
		want    []float64
	}{
		{"two", []float64{1, 2}, []float64{0.5, 0.5}, []float64{0.75, 0.25}},
		{"a tie", []float64{1, 1, 2}, []float64{0.25, 0.25, 0.5}, []float64{0.375, 0.375, 0.25}},
		{"all equal go by chance", []float64{3, 3, 3}, []float64{1, 2, 5}, []float64{0.125, 0.25, 0.625}},
		{"who is never drawn", []float64{0, 2}, []float64{0, 1}, []float64{0, 1}},
		{"nobody is", []float64{0, 2}, []float64{0, 0}, []float64{0, 0}},
	} {
		if got := rankShares(tc.cost, tc.p); !near(got, tc.want, tiny) {
			t.Errorf("%s: rankShares(%v, %v) = %v, want %v", tc.name, tc.cost, tc.p, got, tc.want)
		}
	}
}

// forms are both closed forms as functions of loads and weights.
var forms = map[string]func(loads, weights []float64) []float64{
	"waterFill":  func(l, w []float64) []float64 { return waterFill(l, w, 50) },
	"rankShares": rankShares,
}

// TestFormsProperties: shares add up to 1, follow their members when these are
// reordered, and do not grow with a member's own load.
func TestFormsProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, form := range forms {
		for range 500 {
			n := 1 + rng.IntN(20)
			loads, weights := make([]float64, n), make([]float64, n)
			for i := range loads {
				loads[i], weights[i] = float64(rng.IntN(8)), float64(rng.IntN(5))
			}
			weights[rng.IntN(n)] = 1
			shares := form(loads, weights)
			var sum float64
			for i, s := range shares {
				if sum += s; s < 0 || weights[i] == 0 && s != 0 {
					t.Fatalf("%s(%v, %v) = %v", name, loads, weights, shares)
				}
			}
			if math.Abs(sum-1) > tiny {
				t.Fatalf("%s(%v, %v) = %v, sum %v", name, loads, weights, shares, sum)
			}
			order := rng.Perm(n)
			if got, want := form(permuted(loads, order), permuted(weights, order)), permuted(shares, order); !near(got, want, tiny) {
				t.Fatalf("%s(%v, %v) = %v, reordered %v, want %v", name, loads, weights, shares, got, want)
			}
			i := rng.IntN(n)
			more := slices.Clone(loads)
			more[i] += float64(1 + rng.IntN(3))
			if got := form(more, weights); got[i] > shares[i]+tiny {
				t.Fatalf("%s(%v, %v) gives %d a share of %v, with load %v %v", name, loads, weights, i, shares[i], more[i], got[i])
			}
		}
	}
}

func permuted(xs []float64, order []int) []float64 {
	out := make([]float64, len(xs))
	for i, j := range order {
		out[i] = xs[j]
	}
	return out
}

// TestWaterFillLevels: after the arrivals, nobody who got some is above anybody.
func TestWaterFillLevels(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		n, arrivals := 1+rng.IntN(20), rng.Float64()*60
		active, weights := make([]float64, n), make([]float64, n)
		for i := range active {
			active[i], weights[i] = float64(rng.IntN(30)), 0.1+rng.Float64()
		}
		shares := waterFill(active, weights, arrivals)
		lowest, highest := math.Inf(1), 0.0
		for i, s := range shares {
			level := (active[i] + s*arrivals) / weights[i]
			lowest = min(lowest, level)
			if s > 0 {
				highest = max(highest, level)
			}
		}
		if highest > lowest*(1+tiny) {
			t.Fatalf("%v arrive at %v of weights %v: shares %v, levels from %v to %v", arrivals, active, weights, shares, lowest, highest)
		}
	}
}

// shareCase is a table with loads.
type shareCase struct {
	algorithm string
	members   []algo.Member
	active    []float64
	latency   []time.Duration
	arrivals  int
}

func randomShareCase(rng *rand.Rand, name string, starters bool) shareCase {
	n := 1 + rng.IntN(12)
	c := shareCase{algorithm: name, arrivals: 200 + rng.IntN(400)}
	weighted := starters || rng.IntN(2) == 0
	for i := range n {
		m := algo.Member{ID: uint64(i + 1), Weight: 100}
		if weighted {
			m.Weight = uint16(1 + rng.IntN(100))
		}
		if starters && i > 0 && rng.IntN(3) == 0 {
			m.Ramp = uint16(1 + rng.IntN(65535))
		}
		c.members = append(c.members, m)
		c.active = append(c.active, float64(rng.IntN(60)))
		// Powers of two: algo rounds others.
		c.latency = append(c.latency, time.Duration(1<<(8+rng.IntN(4)))*time.Microsecond)
	}
	return c
}

// picks lets algo.Pick choose for all arrivals, again and again from the same loads if
// they do not stay, and returns the shares.
func (c shareCase) picks(t *testing.T, rng *rand.Rand, rounds int, stay bool) (algo.Table, []float64) {
	t.Helper()
	table, err := algo.Build(c.algorithm, c.members)
	if err != nil {
		t.Fatal(err)
	}
	shares := make([]float64, len(c.members))
	for range rounds {
		active := slices.Clone(c.active)
		load := func(i int) algo.Load {
			return algo.Load{Active: uint32(active[i]), Latency: uint32(c.latency[i].Microseconds())}
		}
		for range c.arrivals {
			in := algo.Input{Load: load}
			for k := range in.Rand {
				in.Rand[k] = rng.Uint32()
			}
			i := algo.Pick(table, in)
			shares[i] += 1 / float64(rounds*c.arrivals)
			if stay {
				active[i]++
			}
		}
	}
	return table, shares
}

// TestLoadSharesArePicks: shares are what the algorithm would have picked, for the
// next connection (power-of-two only: others pick the same one again) and for many.
func TestLoadSharesArePicks(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, name := range []string{"power-of-two", "least-connection", "least-time"} {
		for _, starters := range []bool{false, true} {
			for range 25 {
				c := randomShareCase(rng, name, starters)
				if name == "power-of-two" {
					table, want := c.picks(t, rng, 100, false)
					if got := loadShares(table, c.active, c.latency, 0); !near(got, want, 0.015) {
						t.Errorf("%s: the next connection of %+v: shares %.3f, picks %.3f", name, c, got, want)
					}
				}
				table, want := c.picks(t, rng, 20, true)
				got := loadShares(table, c.active, c.latency, float64(c.arrivals))
				if !near(got, want, 0.03) {
					t.Errorf("%s: %d connections of %+v: shares %.3f, picks %.3f", name, c.arrivals, c, got, want)
				}
			}
		}
	}
}

// TestLoadSharesOfOtherTables: they decide for themselves.
func TestLoadSharesOfOtherTables(t *testing.T) {
	for _, name := range algo.Names() {
		table, err := algo.Build(name, []algo.Member{{ID: 1, Weight: 1}, {ID: 2, Weight: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if got := loadShares(table, []float64{0, 0}, nil, 2); (got == nil) == algo.ByLoad(name) {
			t.Errorf("%s: shares %v", name, got)
		}
	}
	if got := loadShares(algo.Table{}, nil, nil, 2); got != nil {
		t.Errorf("an empty table has shares %v", got)
	}
}

// TestUnknownLatency: it counts as the highest that is known; if none is, connections
// decide alone.
func TestUnknownLatency(t *testing.T) {
	table, err := algo.Build("least-time", []algo.Member{{ID: 1, Weight: 1}, {ID: 2, Weight: 1}, {ID: 3, Weight: 1}})
	if err != nil {
		t.Fatal(err)
	}
	const ms = time.Millisecond
	for _, tc := range []struct {
		latency []time.Duration
		want    []float64
	}{
		{[]time.Duration{ms, 0, 3 * ms}, []float64{0.6, 0.2, 0.2}},
		{[]time.Duration{0, 0, 0}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{nil, []float64{1. / 3, 1. / 3, 1. / 3}},
	} {
		if got := loadShares(table, make([]float64, 3), tc.latency, 30); !near(got, tc.want, tiny) {
			t.Errorf("latencies %v: shares %.4f, want %.4f", tc.latency, got, tc.want)
		}
	}
}
