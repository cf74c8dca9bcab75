// SPDX-License-Identifier: Apache-2.0

package algo_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// TestAvoid suspects members at random: another one that has a weight is found whenever
// there is one among few, and never one of weight 0.
func TestAvoid(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, name := range algo.Names() {
		for range 500 {
			ms := make([]algo.Member, 1+rng.IntN(algo.WalkMembers))
			for i := range ms {
				ms[i] = algo.Member{ID: rng.Uint64(), Weight: uint16(rng.IntN(4) * rng.IntN(90))}
			}
			table, err := algo.Build(name, ms)
			if err != nil {
				t.Fatal(err)
			}
			in := algo.Input{Seq: rng.Uint32(), Hash: rng.Uint32(), Load: func(int) algo.Load { return algo.Load{} }}
			for i := range in.Rand {
				in.Rand[i] = rng.Uint32()
			}
			first := algo.Pick(table, in)
			if first < 0 {
				continue
			}
			suspect := map[int]bool{first: true}
			left := 0
			for i, m := range ms {
				if rng.IntN(2) == 0 {
					suspect[i] = true
				}
				if m.Weight > 0 && !suspect[i] {
					left++
				}
			}
			takes := func(i int) bool { return ms[i].Weight > 0 && !suspect[i] }
			got, _ := algo.Avoid(table, in, first, takes)
			if left > 0 && !takes(got) || left == 0 && got != first {
				t.Fatalf("seed %d: %s of %v, suspect %v: %d instead of %d, %d are left", seed, name, ms, suspect, got, first, left)
			}
			if again, _ := algo.Avoid(table, in, first, takes); again != got {
				t.Fatalf("seed %d: %s: %d, then %d, by the same input", seed, name, got, again)
			}
		}
	}
}

// TestAvoidSharesEvenly: what a suspect member of many would have got goes to all others.
func TestAvoidSharesEvenly(t *testing.T) {
	const members, connections = 5, 40000
	for _, name := range []string{"random", "round-robin", "hash", "ip-hash", "power-of-two", "least-connection"} {
		ms := make([]algo.Member, members)
		for i := range ms {
			ms[i] = algo.Member{ID: uint64(i) + 1, Weight: 100}
		}
		table, err := algo.Build(name, ms)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(1, 0))
		in := algo.Input{Load: func(int) algo.Load { return algo.Load{} }}
		got := [members]int{}
		for range connections {
			in.Hash = rng.Uint32()
			for i := range in.Rand {
				in.Rand[i] = rng.Uint32()
			}
			i, turns := algo.Pick(table, in), uint32(0)
			if i == 2 {
				i, turns = algo.Avoid(table, in, i, func(m int) bool { return m != 2 })
			}
			in.Seq += 1 + turns
			got[i]++
		}
		for i, n := range got {
			if want := connections / (members - 1); i != 2 && (n < want*85/100 || n > want*115/100) {
				t.Errorf("%s: member %d got %d of %d connections, want about %d: %v", name, i, n, connections, want, got)
			}
		}
		if got[2] != 0 {
			t.Errorf("%s: the suspect got %d", name, got[2])
		}
	}
}
