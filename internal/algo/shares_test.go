// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"math"
	"testing"
)

// TestSharesAddUp: every form of a table says who gets what, and nobody twice.
func TestSharesAddUp(t *testing.T) {
	many := make([]Member, 70)
	for i := range many {
		many[i] = Member{ID: uint64(i), Weight: uint16(1 + i%3)}
	}
	for _, name := range Names() {
		for form, ms := range map[string][]Member{
			"equal":    members(7, 7, 7),
			"weighted": members(1, 5, 0),
			"starting": {{ID: 1, Weight: 3}, {ID: 2, Weight: 5, Ramp: 9000}, {ID: 3, Weight: 5}, {ID: 4, Weight: 1, Ramp: 60000}},
			"many":     many,
		} {
			var sum float64
			for _, s := range Shares(mustBuild(t, name, ms)) {
				sum += s
			}
			if math.Abs(sum-1) > 1e-6 {
				t.Errorf("%s, %s: shares add up to %v, want 1", name, form, sum)
			}
		}
		if got := Shares(mustBuild(t, name, members(0, 0))); len(got) > 0 {
			t.Errorf("%s without weights: shares %v, want none", name, got)
		}
	}
}

// TestSharesOfWeights: shares are those of the weights; a member in slow start has no
// more than its chance.
func TestSharesOfWeights(t *testing.T) {
	for _, name := range Names() {
		got := Shares(mustBuild(t, name, members(1, 3, 0)))
		for i, want := range []float64{0.25, 0.75, 0} {
			if math.Abs(got[i]-want) > 0.01 {
				t.Errorf("%s: shares %v, want 0.25 0.75 0", name, got)
				break
			}
		}
	}
	for _, name := range []string{"power-of-two", "least-connection", "least-time"} {
		got := Shares(mustBuild(t, name, []Member{{ID: 1, Weight: 1}, {ID: 2, Weight: 1}, {ID: 3, Weight: 2, Ramp: 1 << 14}}))
		for i, want := range []float64{0.421875, 0.421875, 0.15625} { // 5/4 of a quarter of a half
			if math.Abs(got[i]-want) > 0.0001 {
				t.Errorf("%s: shares %v with a member in slow start, want %v", name, got, want)
				break
			}
		}
	}
}
