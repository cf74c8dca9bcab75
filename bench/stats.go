// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// median returns the middle of xs, or NaN of none.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(xs))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// estimate is a median and how sure it is.
type estimate struct {
	Median   float64 `json:"median"`
	Low      float64 `json:"low"` // 95 % bootstrap confidence interval of the median
	High     float64 `json:"high"`
	Smallest float64 `json:"smallest"`
	Largest  float64 `json:"largest"`
	N        int     `json:"n"`
}

// estimateOf draws 2,000 samples of len(xs) from xs and takes the middle 95 % of
// their medians. The draws are the same in every run.
func estimateOf(xs []float64) estimate {
	const draws = 2000
	if len(xs) == 0 {
		nan := math.NaN()
		return estimate{nan, nan, nan, nan, nan, 0}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	medians, sample := make([]float64, draws), make([]float64, len(xs))
	for i := range medians {
		for k := range sample {
			sample[k] = xs[rng.IntN(len(xs))]
		}
		medians[i] = median(sample)
	}
	slices.Sort(medians)
	return estimate{
		Median: median(xs), Low: medians[draws*25/1000], High: medians[draws*975/1000-1],
		Smallest: slices.Min(xs), Largest: slices.Max(xs), N: len(xs),
	}
}

// pairs combines two series block by block.
func pairs(xs, ys []float64, f func(x, y float64) float64) []float64 {
	out := make([]float64, min(len(xs), len(ys)))
	for i := range out {
		out[i] = f(xs[i], ys[i])
	}
	return out
}

func ratio(x, y float64) float64      { return x / y }
func difference(x, y float64) float64 { return x - y }
