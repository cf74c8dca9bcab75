// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math/rand/v2"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		xs   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{4, 1}, 2.5},
		{[]float64{9, 1, 5}, 5},
	} {
		if got := Median(tc.xs); got != tc.want {
			t.Errorf("Median(%v) = %v, want %v", tc.xs, got, tc.want)
		}
	}
}

// TestEstimateCovers draws samples with a known median: the interval must contain
// it in about 95 of 100 cases.
func TestEstimateCovers(t *testing.T) {
	const seed, cases, size = 7, 300, 21
	rng := rand.New(rand.NewPCG(seed, 0))
	hits := 0
	for range cases {
		xs := make([]float64, size)
		for i := range xs {
			xs[i] = rng.NormFloat64()
		}
		e := EstimateOf(xs)
		if e.Low > e.Median || e.High < e.Median || e.Smallest > e.Low || e.Largest < e.High {
			t.Fatalf("out of order: %+v", e)
		}
		if e.Low <= 0 && e.High >= 0 {
			hits++
		}
	}
	if share := float64(hits) / cases; share < 0.9 || share > 0.99 {
		t.Errorf("seed %d: %.3f of the intervals contain the median, want 0.95", seed, share)
	}
}
