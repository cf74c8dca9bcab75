// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Shares returns each count over what its weight has a claim to, so that 1 is fair. A
// weight of 0 has no claim and no share.
func Shares(counts, weights []float64) []float64 {
	var count, weight float64
	for i, w := range weights {
		count, weight = count+counts[i], weight+w
	}
	var out []float64
	for i, w := range weights {
		if w > 0 && count > 0 {
			out = append(out, counts[i]/(count*w/weight))
		}
	}
	return out
}

// Fairness is how even shares are.
type Fairness struct {
	Max  float64 // the largest over the mean; 1: all are equal
	CV   float64 // standard deviation over the mean; 0: all are equal
	Jain float64 // (sum x)^2 / (n sum x^2). 1: all are equal; 1/n: one has all
}

// FairnessOf returns zeroes if there are no shares or all are 0.
// Source: Jain, Chiu, Hawe, "A quantitative measure of fairness", DEC-TR-301, 1984.
func FairnessOf(shares []float64) Fairness {
	var sum, squares float64
	for _, x := range shares {
		sum, squares = sum+x, squares+x*x
	}
	if sum == 0 {
		return Fairness{}
	}
	n := float64(len(shares))
	mean := sum / n
	return Fairness{
		Max:  slices.Max(shares) / mean,
		CV:   math.Sqrt(max(0, squares/n-mean*mean)) / mean,
		Jain: sum * sum / (n * squares),
	}
}

// Quantile returns the seconds that a part q of what h holds, in nanoseconds, does not
// exceed; NaN of nothing.
func Quantile(h *hdrhistogram.Histogram, q float64) float64 {
	if h == nil || h.TotalCount() == 0 {
		return math.NaN()
	}
	return float64(h.ValueAtQuantile(100*q)) / 1e9
}
