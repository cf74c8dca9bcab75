// SPDX-License-Identifier: Apache-2.0

package stats

import "slices"

// Apart is by how much two halves of the same arm may differ before a run says so: 3 %.
const Apart = 0.03

// Mirrored says whether order, which names the arm that ran at each turn, consists of
// blocks in which every arm has one turn on the way there and one on the way back, as in
// ABCCBA. What drifts in a straight line during such a block adds the same to every arm.
func Mirrored(order []int, arms int) bool {
	if arms < 1 || len(order) == 0 || len(order)%(2*arms) != 0 {
		return false
	}
	for block := range slices.Chunk(order, 2*arms) {
		seen := make([]bool, arms)
		for i, a := range block[:arms] {
			if a < 0 || a >= arms || seen[a] || block[2*arms-1-i] != a {
				return false
			}
			seen[a] = true
		}
	}
	return true
}

// Gap is by how much the larger of two halves exceeds the smaller: 0.03 is 3 %.
func Gap(first, second float64) float64 {
	return max(first, second)/min(first, second) - 1
}
