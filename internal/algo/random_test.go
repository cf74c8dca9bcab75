// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"math/rand/v2"
	"testing"
	"time"
)

// draws counts, of all 65536*n pairs of column and threshold, how many pick each
// member, and how many columns each member appears in.
func draws(t Table) (picks, columns []uint64) {
	picks, columns = make([]uint64, t.N), make([]uint64, t.N)
	for i, w := range t.Alias {
		own, alias := uint64(w>>16), w&0xffff
		picks[i] += own
		picks[alias] += 1<<16 - own
		columns[i]++
		columns[alias]++
	}
	return picks, columns
}

// TestThresholdsAreCounts proves that draws counts what Pick does, by drawing
// every value.
func TestThresholdsAreCounts(t *testing.T) {
	table := mustBuild(t, "random", members(5, 1, 0, 3))
	want, _ := draws(table)
	got := make([]uint64, table.N)
	for col := range uint64(table.N) {
		high := uint32((col<<32 + uint64(table.N) - 1) / uint64(table.N)) // scales to col
		for low := range uint32(1 << 16) {
			got[Pick(table, Input{Rand: [5]uint32{high, low << 16}})]++
		}
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("member %d: %d draws, the thresholds say %d", i, got[i], want[i])
		}
	}
}

func TestAliasSharesAreExact(t *testing.T) {
	for _, weights := range [][]uint16{{1, 3}, {1, 1, 2}, {4, 0}, {1, 2, 4, 1}, {0, 0, 0, 8}, {3, 5, 7, 1}} {
		ms, total := members(weights...), uint64(0)
		for _, m := range ms {
			total += uint64(m.Weight)
		}
		picks, _ := draws(mustBuild(t, "random", ms))
		for i, got := range picks {
			if want := uint64(weights[i]) * uint64(len(ms)) << 16 / total; got != want {
				t.Errorf("weights %v: member %d has %d of %d draws, want %d", weights, i, got, len(ms)<<16, want)
			}
		}
	}
}

// TestAliasSharesAreNear checks arbitrary weights: each column that a member
// appears in rounds its share by at most one draw of 65536*n.
func TestAliasSharesAreNear(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		ms, total := members(make([]uint16, 2+rng.IntN(300))...), uint64(0)
		span := 1 + rng.IntN(1<<16)
		for i := range ms {
			ms[i].Weight = uint16(rng.IntN(span))
			total += uint64(ms[i].Weight)
		}
		if total == 0 || uniform(ms) {
			continue
		}
		picks, columns := draws(mustBuild(t, "random", ms))
		for i, got := range picks {
			// In units of 1/total of a draw, to stay in integers.
			diff := int64(got*total) - int64(uint64(ms[i].Weight)*uint64(len(ms))<<16)
			if limit := int64(columns[i] * total); max(diff, -diff) > limit {
				t.Fatalf("seed %d: member %d of %d (weight %d of %d) has %d draws: off by more than its %d columns",
					seed, i, len(ms), ms[i].Weight, total, got, columns[i])
			}
			if (got == 0) != (ms[i].Weight == 0) {
				t.Fatalf("seed %d: member %d of weight %d has %d draws", seed, i, ms[i].Weight, got)
			}
		}
	}
}

func TestEqualWeightsNeedNoTable(t *testing.T) {
	table := mustBuild(t, "random", members(9, 9, 9))
	if table.Alias != nil {
		t.Errorf("alias table %v, want none", table.Alias)
	}
	seen := map[int]bool{}
	for _, high := range []uint32{0, 1 << 31, 1<<32 - 1} {
		seen[Pick(table, Input{Rand: [5]uint32{high, 0}})] = true
	}
	if len(seen) != 3 {
		t.Errorf("picked %v, want all three members", seen)
	}
}
