// SPDX-License-Identifier: Apache-2.0

package main

import "slices"

// series is one row of one arm, measured in blocks: in each block all arms had a turn.
type series struct {
	Arm    string    `json:"arm"`
	Row    string    `json:"row"`
	Unit   string    `json:"unit"`
	N      int       `json:"n"`
	P50    float64   `json:"p50"`
	P99    float64   `json:"p99"`
	Blocks []float64 `json:"blocks"` // the median of each block
	all    []float64
}

// add takes what one block measured.
func (s *series) add(block []float64) {
	if len(block) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(block))
	s.Blocks = append(s.Blocks, quantile(sorted, 0.5))
	s.all = append(s.all, block...)
	slices.Sort(s.all)
	s.N, s.P50, s.P99 = len(s.all), quantile(s.all, 0.5), quantile(s.all, 0.99)
}

// spread is the median of numbers, the smallest, and the largest.
type spread struct{ mid, low, high float64 }

func spreadOf(numbers []float64) spread {
	if len(numbers) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(numbers))
	return spread{quantile(sorted, 0.5), sorted[0], sorted[len(sorted)-1]}
}

// ratios are a's blocks divided by b's, in pairs. If there is a base, it is subtracted
// from both before.
func ratios(a, b, base *series) []float64 {
	var out []float64
	for i := range min(len(a.Blocks), len(b.Blocks)) {
		zero := 0.0
		if base != nil {
			if i >= len(base.Blocks) {
				break
			}
			zero = base.Blocks[i]
		}
		out = append(out, (a.Blocks[i]-zero)/(b.Blocks[i]-zero))
	}
	return out
}
