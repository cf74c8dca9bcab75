// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// change removes some of ms and inserts others.
func change(rng *rand.Rand, ms []Member) []Member {
	ms = slices.Clone(ms)
	if rng.IntN(2) == 0 && len(ms) > 1 {
		i := rng.IntN(len(ms))
		ms = slices.Delete(ms, i, i+1)
	} else {
		ms = slices.Insert(ms, rng.IntN(len(ms)+1), Member{ID: rng.Uint64(), Weight: 1 + uint16(rng.IntN(5))})
	}
	return ms
}

// movedTo returns where the members of old are in new, or -1.
func movedTo(old, new []Member) []int {
	moved := make([]int, len(old))
	for i, m := range old {
		moved[i] = slices.IndexFunc(new, func(n Member) bool { return n.ID == m.ID })
	}
	return moved
}

func TestResumeEqualWeights(t *testing.T) {
	for _, tc := range []struct {
		name     string
		old, new []uint64 // IDs
		place    uint32
		want     uint64 // who goes next
	}{
		{"nothing changed", []uint64{1, 2, 3}, []uint64{1, 2, 3}, 2, 3},
		{"added in front", []uint64{1, 2, 3}, []uint64{9, 1, 2, 3}, 1, 2},
		{"added behind", []uint64{1, 2, 3}, []uint64{1, 2, 3, 9}, 0, 1},
		{"removed the one that went last", []uint64{1, 2, 3}, []uint64{2, 3}, 1, 2},
		{"removed the one whose turn it is", []uint64{1, 2, 3}, []uint64{1, 3}, 1, 3},
		{"removed the last in order, whose turn it is", []uint64{1, 2, 3}, []uint64{1, 2}, 2, 1},
		{"all but the one that went last", []uint64{1, 2, 3}, []uint64{1}, 1, 1},
		{"everybody was replaced", []uint64{1, 2}, []uint64{7, 8}, 1, 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list := func(ids []uint64) (ms []Member) {
				for _, id := range ids {
					ms = append(ms, Member{ID: id, Weight: 1})
				}
				return ms
			}
			old, new := list(tc.old), list(tc.new)
			at := Resume(mustBuild(t, "round-robin", old), mustBuild(t, "round-robin", new), movedTo(old, new), tc.place)
			if got := tc.new[at]; got != tc.want {
				t.Errorf("%v to %v at place %d: %d goes next, want %d", tc.old, tc.new, tc.place, got, tc.want)
			}
		})
	}
}

// TestResumeServesInTurn checks random orders: who was due goes next, unless that
// would be twice in a row for it, and it is not.
func TestResumeServesInTurn(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		old := members(make([]uint16, 1+rng.IntN(12))...)
		span := 1 + rng.IntN(6)
		for i := range old {
			old[i].Weight = uint16(1 + rng.IntN(span))
		}
		new := change(rng, old)
		a, b := mustBuild(t, "round-robin", old), mustBuild(t, "round-robin", new)
		place, moved := rng.Uint32N(a.Places()), movedTo(old, new)
		at := Resume(a, b, moved, place)
		got, before := int(b.at(at)), int(b.at((at+b.Places()-1)%b.Places()))
		due, last := moved[a.at(place)], moved[a.at((place+a.Places()-1)%a.Places())]
		if due >= 0 && due != last && got != due {
			t.Fatalf("seed %d: %v to %v at place %d: %d goes next, want %d", seed, old, new, place, got, due)
		}
		if got == last && before != last && len(new) > 1 {
			t.Fatalf("seed %d: %v to %v at place %d: %d goes twice in a row", seed, old, new, place, got)
		}
	}
}

// TestResumeSkipsNobody: with equal weights, whatever comes or goes, everybody who
// stays is served once in each len(new) picks.
func TestResumeSkipsNobody(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ms := members(1, 1, 1, 1, 1)
	var seq, offset uint32
	seq = 1<<32 - 50 // wraps around
	waits := map[uint64]int{}
	table := mustBuild(t, "round-robin", ms)
	for range 500 {
		for range rng.IntN(9) {
			for _, m := range ms {
				waits[m.ID]++
			}
			m := ms[Pick(table, Input{Seq: seq + offset})]
			seq++
			if waits[m.ID] > 2*len(ms)+1 {
				t.Fatalf("seed %d: member %d waited for %d picks among %d members", seed, m.ID, waits[m.ID], len(ms))
			}
			waits[m.ID] = 0
		}
		next := change(rng, ms)
		for i := range next {
			next[i].Weight = 1
		}
		place := (seq + offset) % table.Places()
		after := mustBuild(t, "round-robin", next)
		offset = Offset(seq, Resume(table, after, movedTo(ms, next), place))
		ms, table = next, after
	}
}

func TestResumePlaceIsReadBack(t *testing.T) {
	for _, seq := range []uint32{0, 1, 1<<31 + 5, 1<<32 - 1} {
		for _, place := range []uint32{0, 6, 196606} {
			if got := seq + Offset(seq, place); got != place {
				t.Errorf("seq %d with the offset for place %d reads %d", seq, place, got)
			}
		}
	}
}
