// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/algo"
)

// TestIndexPicksWhatAlgoDoes: the index is faster than algo.Pick, not different.
func TestIndexPicksWhatAlgoDoes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 400 {
		ms := randomMembers(rng)
		table, err := algo.Build(scenario.LeastConnection, ms)
		if err != nil {
			t.Fatal(err)
		}
		if table.N == 0 {
			continue
		}
		p := &pool{members: ms}
		n := &node{loads: make([]load, len(ms))}
		for i := range ms {
			p.backends, p.index = append(p.backends, int32(i)), append(p.index, int32(i))
			n.loads[i].active = uint32(rng.IntN(4))
		}
		n.indexed(p, table.Factors, nil)
		for step := range 300 {
			in := algo.Input{Rand: [5]uint32{rng.Uint32(), 0, 0, 0, rng.Uint32()}, Load: func(m int) algo.Load {
				return algo.Load{Active: n.loads[m].active}
			}}
			want := algo.Pick(table, in)
			got, _ := n.least.pick(in.Rand[0])
			if len(table.Starters) > 0 {
				got = n.least.pickStarting(&table, n, p, in.Rand[0], in.Rand[4])
			}
			if got != want {
				t.Fatalf("seed %d, round %d, step %d, %d members: pick %d, want %d", seed, round, step, len(ms), got, want)
			}
			n.add(p, int32(got), 1)
			if b := int32(rng.IntN(len(ms))); n.loads[b].active > 0 {
				n.add(p, b, -1)
			}
		}
	}
}

// randomMembers returns 1 to 150 members: mostly of equal weight in a third of
// the cases, some of them starting in another.
func randomMembers(rng *rand.Rand) []algo.Member {
	ms := make([]algo.Member, 1+rng.IntN(150))
	style := rng.IntN(3)
	for i := range ms {
		ms[i] = algo.Member{ID: uint64(i) + 1, Weight: 1}
		if style > 0 {
			ms[i].Weight = uint16(rng.IntN(5))
		}
		if style == 2 && rng.IntN(4) == 0 {
			ms[i].Ramp = uint16(1 + rng.IntN(65535))
		}
	}
	return ms
}

func BenchmarkIndex(b *testing.B) {
	const members = 10000
	rng := rand.New(rand.NewPCG(1, 2))
	x := newLeastIndex(members, nil, nil)
	active := make([]uint32, members)
	for b.Loop() {
		m, _ := x.pick(rng.Uint32())
		active[m]++
		x.set(m, active[m])
		if k := rng.IntN(members); active[k] > 0 {
			active[k]--
			x.set(k, active[k])
		}
	}
}
