// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// maglev is the published algorithm, to compare with: members take turns, and in
// each turn a member goes on to its next free place.
func maglev(ms []Member, size uint32) []uint16 {
	table := make([]uint16, size)
	for i := range table {
		table[i] = free
	}
	cs := claimants(ms)
	for i := range cs {
		cs[i].place, cs[i].stride = uint32(cs[i].id%uint64(size)), uint32(mix(cs[i].id)%uint64(size-1))+1
	}
	for left := size; ; {
		for i := range cs {
			c := &cs[i]
			for table[c.place] != free {
				c.place = (c.place + c.stride) % size
			}
			table[c.place] = c.index
			if left--; left == 0 {
				return table
			}
		}
	}
}

// numbered returns n members of weight 100 whose IDs depend on seed.
func numbered(n int, seed uint64) []Member {
	ms := make([]Member, n)
	for i := range ms {
		ms[i] = Member{ID: mix(seed<<20 + uint64(i) + 1), Weight: 100}
	}
	return ms
}

// excess returns how many places moved between members that are in both lists,
// when member gone leaves or comes.
func excess(build func([]Member, uint32) []uint16, ms []Member, gone int, size uint32, all []uint16) int {
	less, moved := build(slices.Delete(slices.Clone(ms), gone, gone+1), size), 0
	for p, owner := range all {
		now := int(less[p])
		if now >= gone {
			now++
		}
		if int(owner) != gone && now != int(owner) {
			moved++
		}
	}
	return moved
}

// TestHashChurn compares places that move although neither their old nor their
// new owner came or left, in sizes that are used and in others. Adding is removing
// read backwards.
func TestHashChurn(t *testing.T) {
	for _, tc := range []struct {
		n, seeds, removals int
		size               uint32
		limit              float64 // of all places
	}{
		{10, 100, 10, 1021, 0.012},
		{160, 4, 8, 16381, 0.0085},
		{10, 30, 10, 4093, 0.006},
		{11, 30, 11, 4093, 0.006},
		{40, 10, 10, 4093, 0.012},
		{160, 6, 10, 4093, 0.0095},
		{1000, 1, 4, 65521, 0.002},
	} {
		var ours, theirs, most float64
		for seed := range tc.seeds {
			ms := numbered(tc.n, uint64(seed))
			our, their := Owners(ms, tc.size), maglev(ms, tc.size)
			for r := range tc.removals {
				gone := r * tc.n / tc.removals
				one := float64(excess(Owners, ms, gone, tc.size, our)) / float64(tc.size)
				ours, most = ours+one, max(most, one)
				theirs += float64(excess(maglev, ms, gone, tc.size, their)) / float64(tc.size)
			}
		}
		runs := float64(tc.seeds * tc.removals)
		ours, theirs = ours/runs, theirs/runs
		t.Logf("%d in %d: excess churn %.3f %% (most %.3f %%), Maglev %.3f %%", tc.n, tc.size, 100*ours, 100*most, 100*theirs)
		if ours > tc.limit {
			t.Errorf("%d in %d: excess churn %.4f, want at most %.4f", tc.n, tc.size, ours, tc.limit)
		}
		if ours > theirs/2 {
			t.Errorf("%d in %d: excess churn %.4f, want at most half of Maglev's %.4f", tc.n, tc.size, ours, theirs)
		}
	}
}

// TestHashSizesChangeRarely: a Service that grows and shrinks, as in every rolling
// update, has the same number of places nearly always.
func TestHashSizesChangeRarely(t *testing.T) {
	for _, tc := range []struct {
		from, to int // members
		want     uint32
	}{{1, 163, 4093}, {164, 2620, 65521}, {2621, MaxMembers, 131071}} {
		for n := tc.from; n <= tc.to; n++ {
			if got := tableSize(n); got != tc.want {
				t.Fatalf("%d members have %d places, want %d", n, got, tc.want)
			}
		}
	}
}

// TestHashGrowsFromTenToEleven: of the tables as they are built, few places move.
func TestHashGrowsFromTenToEleven(t *testing.T) {
	const runs = 20
	moved, places := 0, 0
	for seed := range uint64(runs) {
		ms := numbered(11, seed)
		before, after := mustBuild(t, "hash", ms[:10]).Order, mustBuild(t, "hash", ms).Order
		if len(before) != len(after) {
			t.Fatalf("%d places with 10 members, %d with 11", len(before), len(after))
		}
		for p, owner := range after {
			if owner != 10 && owner != before[p] {
				moved++
			}
		}
		places += len(after)
	}
	if limit := places / 100; moved > limit {
		t.Errorf("%d of %d places moved without need, want at most %d", moved, places, limit)
	}
}

// TestHashChurnOfWeights: with unequal weights the churn is of the same size.
func TestHashChurnOfWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var sum float64
	const runs = 40
	for seed := range uint64(runs) {
		ms := numbered(20, seed)
		for i := range ms {
			ms[i].Weight = uint16(1 + rng.IntN(100))
		}
		size := tableSize(len(ms))
		sum += float64(excess(Owners, ms, int(seed%20), size, Owners(ms, size))) / float64(size)
	}
	t.Logf("excess churn %.3f %%", 100*sum/runs)
	if sum/runs > 0.015 {
		t.Errorf("excess churn %.4f, want at most 0.015", sum/runs)
	}
}

func TestHashSharesOfEqualMembers(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 9, 10, 20, 37, 40, 41, 81, 158, 160, 163, 164, 411, 655, 656, 1310, 2620, 2621, 30000} {
		for seed := range uint64(2) {
			got := make([]int, n)
			size := tableSize(n)
			for _, owner := range Owners(numbered(n, seed), size) {
				got[owner]++
			}
			mean := float64(size) / float64(n)
			low, high := 0.95*mean-1, 1.01*mean
			if mean < 100 {
				low, high = 0.9*mean-1, mean+1
			}
			if least, most := float64(slices.Min(got)), float64(slices.Max(got)); least < low || most > high {
				t.Errorf("%d members, seed %d: they have %.0f to %.0f of %d places, want %.2f to %.2f", n, seed, least, most, size, low, high)
			}
		}
	}
}

func TestHashSharesOfWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{2, 5, 10, 160, 1000, 10000} {
		ms, total := numbered(n, 7), uint64(0)
		for i := range ms {
			ms[i].Weight = uint16(rng.Uint32() >> (16 + rng.IntN(16)))
			total += uint64(ms[i].Weight)
		}
		order := mustBuild(t, "hash", ms).Order
		got := make([]int, n)
		for _, owner := range order {
			got[owner]++
		}
		for i, m := range ms {
			share := float64(m.Weight) * float64(len(order)) / float64(total)
			low, high := 0.95*share-1, 1.01*share+1
			if share < 100 {
				low = 0.9*share - 1
			}
			if g := float64(got[i]); g < low || g > high || (got[i] == 0) != (m.Weight == 0) {
				t.Errorf("%d members: one of weight %d of %d has %d of %d places, want %.1f to %.1f", n, m.Weight, total, got[i], len(order), low, high)
			}
		}
	}
}

// TestHashEverybodyHasAPlace: also where many shares are far below one place.
func TestHashEverybodyHasAPlace(t *testing.T) {
	for _, tc := range []struct{ n, heavy int }{{163, 20}, {2620, 30}, {20000, 10}, {MaxMembers, 10}} {
		ms := numbered(tc.n, 1)
		for i := range ms {
			ms[i].Weight = 1
			if i < tc.heavy {
				ms[i].Weight = 65535
			}
		}
		got := make([]int, tc.n)
		for _, owner := range mustBuild(t, "hash", ms).Order {
			got[owner]++
		}
		if i := slices.Index(got, 0); i >= 0 {
			t.Errorf("%d members, %d of them heavy: member %d has no place", tc.n, tc.heavy, i)
		}
	}
}

func TestHashDependsOnNothingElse(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 2, 9, 100, 700} {
		ms := numbered(n, 1)
		for i := range ms {
			ms[i].Weight = uint16(rng.IntN(4))
		}
		ms[0].Weight = 1
		before := Owners(ms, tableSize(n))
		order := rng.Perm(n)
		shuffled := make([]Member, n)
		for to, from := range order {
			shuffled[to] = ms[from]
		}
		for p, owner := range Owners(shuffled, tableSize(n)) {
			if got := order[owner]; got != int(before[p]) {
				t.Fatalf("%d members in another order: place %d is %d's, want %d's", n, p, got, before[p])
			}
		}
		ms[0].Ramp = 1
		if table := mustBuild(t, "ip-hash", ms); !slices.Equal(table.Order, before) {
			t.Errorf("%d members: slow start changes the table", n)
		}
	}
}

// TestHashHealthFlap: who comes back finds its places, and so does everybody else.
func TestHashHealthFlap(t *testing.T) {
	ms := numbered(10, 5)
	before := mustBuild(t, "hash", ms)
	without := mustBuild(t, "hash", slices.Delete(slices.Clone(ms), 3, 4))
	after := mustBuild(t, "hash", ms)
	if slices.Equal(before.Order, without.Order) {
		t.Error("the table without a member is the same")
	}
	if !slices.Equal(before.Order, after.Order) {
		t.Error("the table after the member's return is another one")
	}
}

// TestHashWeightZeroKeepsTheSize: to drain a member by its weight does not change
// the number of places, which would move nearly all of them.
func TestHashWeightZeroKeepsTheSize(t *testing.T) {
	ms := numbered(11, 5)
	before := mustBuild(t, "hash", ms)
	ms[4].Weight = 0
	after := mustBuild(t, "hash", ms)
	moved := 0
	for p := range before.Order {
		if before.Order[p] != 4 && before.Order[p] != after.Order[p] {
			moved++
		}
	}
	if limit := len(before.Order) / 20; moved > limit {
		t.Errorf("%d of %d places moved beside those of the drained member, want at most %d", moved, len(before.Order), limit)
	}
}

func BenchmarkHashBuild(b *testing.B) {
	for _, n := range []int{10, 160, 1000, 10000, MaxMembers} {
		for _, shape := range []string{"equal", "heavy", "random"} {
			b.Run(fmt.Sprintf("%d/%s", n, shape), func(b *testing.B) {
				ms := numbered(n, 1)
				for i := range ms {
					ms[i].Weight = 1
					if shape == "random" {
						ms[i].Weight = uint16(mix(uint64(i)))
					}
				}
				if shape == "heavy" {
					ms[n/2].Weight = 65535
				}
				for b.Loop() {
					mustBuild(b, "hash", ms)
				}
			})
		}
	}
}
