// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const tiny = 1e-9

func near(got, want float64) bool {
	return math.Abs(got-want) < tiny || math.IsNaN(got) && math.IsNaN(want)
}

func TestMirrored(t *testing.T) {
	for _, tc := range []struct {
		name  string
		order []int
		arms  int
		want  bool
	}{
		{"ABCCBA", []int{0, 1, 2, 2, 1, 0}, 3, true},
		{"twice, in another order", []int{0, 1, 1, 0, 1, 0, 0, 1}, 2, true},
		{"one arm", []int{0, 0}, 1, true},
		{"ABCABC", []int{0, 1, 2, 0, 1, 2}, 3, false},
		{"an arm twice", []int{0, 0, 1, 1, 0, 0}, 3, false},
		{"half of a block", []int{0, 1, 1, 0, 0, 1}, 2, false},
		{"an arm that is not there", []int{0, 2, 2, 0}, 2, false},
		{"nothing", nil, 2, false},
		{"no arms", []int{0, 0}, 0, false},
	} {
		if got := Mirrored(tc.order, tc.arms); got != tc.want {
			t.Errorf("%s: Mirrored(%v, %d) = %t, want %t", tc.name, tc.order, tc.arms, got, tc.want)
		}
	}
}

func TestGap(t *testing.T) {
	for _, tc := range []struct{ a, b, want float64 }{{100, 103, 0.03}, {103, 100, 0.03}, {5, 5, 0}, {1, 2, 1}} {
		if got := Gap(tc.a, tc.b); !near(got, tc.want) {
			t.Errorf("Gap(%v, %v) = %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}

// TestFairness has shares whose measures are easy by hand: of 1 and 3, the mean is 2, the
// standard deviation 1, and Jain's index 4*4 / (2*10).
func TestFairness(t *testing.T) {
	for _, tc := range []struct {
		name            string
		counts, weights []float64
		want            Fairness
	}{
		{"equal", []float64{5, 5, 5, 5}, []float64{1, 1, 1, 1}, Fairness{1, 0, 1}},
		{"as the weights say", []float64{30, 20, 10}, []float64{3, 2, 1}, Fairness{1, 0, 1}},
		{"one has all", []float64{12, 0, 0, 0}, []float64{1, 1, 1, 1}, Fairness{4, math.Sqrt(3), 0.25}},
		{"1 and 3", []float64{10, 30}, []float64{1, 1}, Fairness{1.5, 0.5, 0.8}},
		{"weights turn 1 and 3 around", []float64{10, 30}, []float64{1, 9}, Fairness{1.5, 0.5, 0.8}},
		{"no claim, no share", []float64{7, 5, 5}, []float64{0, 1, 1}, Fairness{1, 0, 1}},
		{"no requests", []float64{0, 0}, []float64{1, 1}, Fairness{}},
		{"no backends", nil, nil, Fairness{}},
	} {
		got := FairnessOf(Shares(tc.counts, tc.weights))
		if !near(got.Max, tc.want.Max) || !near(got.CV, tc.want.CV) || !near(got.Jain, tc.want.Jain) {
			t.Errorf("%s: %v by %v: %+v, want %+v", tc.name, tc.counts, tc.weights, got, tc.want)
		}
	}
}

func TestShares(t *testing.T) {
	// Of 60 requests weights 3, 2 and 1 have a claim to 30, 20 and 10.
	got, want := Shares([]float64{15, 20, 25}, []float64{3, 2, 1}), []float64{0.5, 1, 2.5}
	for i := range want {
		if len(got) != len(want) || !near(got[i], want[i]) {
			t.Fatalf("Shares = %v, want %v", got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	h := hdrhistogram.New(1000, 1e9, 3)
	if got := Quantile(h, 0.5); !math.IsNaN(got) {
		t.Errorf("half of nothing: %v, want NaN", got)
	}
	for ms := range int64(100) {
		if err := h.RecordValue((ms + 1) * 1e6); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ q, want float64 }{{0.5, 0.050}, {0.99, 0.099}, {1, 0.100}} {
		if got := Quantile(h, tc.q); math.Abs(got/tc.want-1) > 0.001 {
			t.Errorf("quantile %v of 1 ms to 100 ms: %v s, want %v within 0.1 %%", tc.q, got, tc.want)
		}
	}
}

func TestSides(t *testing.T) {
	for _, tc := range []struct {
		xs   []float64
		want int
	}{
		{[]float64{1.1, 1.2, 1.3, 1.1, 1.2, 1.3}, 1},
		{[]float64{0.7, 0.8, 0.9, 0.7, 0.8, 0.9}, -1},
		{[]float64{0.9, 1, 1.1, 0.9, 1, 1.1}, 0},
		{[]float64{1.2, 1.3, 1.2, 1.3, 1.2}, 0}, // too few
		{nil, 0},
	} {
		if got := EstimateOf(tc.xs).Sides(1); got != tc.want {
			t.Errorf("%v is on side %d of 1, want %d", tc.xs, got, tc.want)
		}
	}
}

// TestRatiosByBlock: what is common to a block, as another process on the machine, is not
// in the ratio.
func TestRatiosByBlock(t *testing.T) {
	direct, proxied := []float64{100, 50, 80}, []float64{110, 55, 88}
	e := EstimateOf(Pairs(proxied, direct, Ratio))
	if !near(e.Median, 1.1) || e.N != 3 || e.Largest-e.Smallest > tiny {
		t.Errorf("%+v, want 1.1 in all of 3 blocks", e)
	}
	if got := Pairs([]float64{3, 4}, []float64{1}, Difference); len(got) != 1 || got[0] != 2 {
		t.Errorf("differences of unequal series: %v, want [2]", got)
	}
}
