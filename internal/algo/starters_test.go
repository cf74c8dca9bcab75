// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"math/rand/v2"
	"testing"
)

// candidates returns the share of picks in which each member is a candidate as a
// starter, computed from the table alone.
func candidates(ms []Member) []float64 {
	shares := make([]float64, len(ms))
	words := starters(ms)
	for _, w := range words {
		shares[w&0xffff] = float64(w>>16) / 65536 / float64(len(words))
	}
	return shares
}

// TestStartersShelterEstablishedToo: in a rollout in which most members are starting,
// those that are not get at most twice their fair share, and no starter gets more than
// 5/4 of its own.
func TestStartersShelterEstablishedToo(t *testing.T) {
	const rounding = 1.0 / 65536
	rng := rand.New(rand.NewPCG(21, 22))
	for n := 2; n <= 60; n++ {
		for established := 1; established < n; established += 1 + n/10 {
			for _, shape := range []string{"all new", "equal weights", "weights"} {
				ms := numbered(n, 3)
				var full, est float64
				for i := range ms {
					if shape == "weights" {
						ms[i].Weight = uint16(1 + rng.IntN(1000))
					}
					if i >= established {
						ms[i].Ramp = 6554
						if shape != "all new" {
							ms[i].Ramp = uint16(1 + rng.IntN(65535))
						}
					} else {
						est += float64(ms[i].Weight)
					}
					full += float64(ms[i].Weight)
				}
				rest, bound, capped := 1.0, 0.0, 0.0
				for i, got := range candidates(ms) {
					fair := float64(ms[i].Weight) / full
					if got > 1.25*fair+rounding {
						t.Errorf("%s: %d of %d established: starter %d gets %.4f, want at most 5/4 of %.4f", shape, established, n, i, got, fair)
					}
					rest -= got
					if i >= established {
						bound += min(1.25*fair, 1/float64(n-established)) // a starter is drawn no more often
						capped += min(1.25*fair*float64(ms[i].Ramp)/65536, 1/float64(n-established))
					}
				}
				want := max(2*est/full, 1-bound)
				if rest > want+rounding*float64(n) {
					t.Errorf("%s: the %d of %d established get %.4f, want at most %.4f", shape, established, n, rest, want)
				}
				if regular := 1 - capped; rest < min(want, regular)-rounding*float64(n) {
					t.Errorf("%s: the %d of %d established get %.4f, want no less than %.4f", shape, established, n, rest, min(want, regular))
				}
			}
		}
	}
}

// TestRampedWeightsShelterEstablishedToo: the same for the weights that random and
// round-robin use, and for these it is always possible.
func TestRampedWeightsShelterEstablishedToo(t *testing.T) {
	const rounding = 0.001
	rng := rand.New(rand.NewPCG(23, 24))
	for n := 2; n <= 60; n++ {
		for established := 1; established < n; established += 1 + n/10 {
			ms := numbered(n, 3)
			var full, est, got, sum float64
			for i := range ms {
				ms[i].Weight = uint16(1 + rng.IntN(1000))
				full += float64(ms[i].Weight)
				if i < established {
					est += float64(ms[i].Weight)
				} else {
					ms[i].Ramp = uint16(1 + rng.IntN(65535)>>rng.IntN(8))
				}
			}
			ws := rampedWeights(ms)
			for i, w := range ws {
				sum += float64(w)
				if i < established {
					got += float64(w)
				}
			}
			if share := got / sum; share > 2*est/full+rounding {
				t.Errorf("the %d of %d established get %.4f, want at most twice %.4f", established, n, share, est/full)
			}
			for i, w := range ws[established:] {
				fair := float64(ms[established+i].Weight) / full
				if share := float64(w) / sum; share > 1.25*fair*(1+rounding) || w == 0 {
					t.Errorf("%d of %d established: starter %d gets %.5f, want above 0 and at most 5/4 of %.5f", established, n, i, share, fair)
				}
			}
		}
	}
}

// TestEveryStarterHasAChance: however small its weight and its ramp are.
func TestEveryStarterHasAChance(t *testing.T) {
	for _, ms := range [][]Member{
		{{ID: 1, Weight: 65535}, {ID: 2, Weight: 1, Ramp: 1}},
		{{ID: 1, Weight: 65535}, {ID: 2, Weight: 65535, Ramp: 65535}, {ID: 3, Weight: 1, Ramp: 6554}},
		{{ID: 1, Weight: 1}, {ID: 2, Weight: 65535, Ramp: 1}, {ID: 3, Weight: 1, Ramp: 1}},
	} {
		for i, got := range candidates(ms) {
			if isStarter(ms[i]) && got == 0 {
				t.Errorf("of %+v, member %d is never a candidate", ms, i)
			}
		}
	}
}
