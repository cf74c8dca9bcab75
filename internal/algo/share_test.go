// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// simulate makes picks and returns how many each member got. Each pick is a
// connection that stays for hold picks. The inputs are the same on each run.
func simulate(t Table, picks, hold int) []int {
	rng := rand.New(rand.NewPCG(7, uint64(t.Kind)))
	got, active := make([]int, t.N), make([]uint32, t.N)
	var open []int
	load := func(i int) Load { return Load{Active: active[i], Latency: 1000} }
	for seq := range picks {
		in := Input{Seq: uint32(seq), Hash: rng.Uint32(), Load: load}
		for i := range in.Rand {
			in.Rand[i] = rng.Uint32()
		}
		i := Pick(t, in)
		got[i]++
		active[i]++
		if open = append(open, i); len(open) > hold {
			active[open[0]]--
			open = open[1:]
		}
	}
	return got
}

// TestSharesFollowWeights: when all members are equally fast, each gets the share
// that its weight says, within five standard deviations of independent draws.
func TestSharesFollowWeights(t *testing.T) {
	const picks, hold = 60000, 600
	for _, name := range Names() {
		for _, weights := range [][]uint16{{1, 1, 1, 1}, {100, 50, 25, 0, 100}, {10, 1}, {3, 3, 3, 1, 1, 1, 7, 0, 2, 9, 4, 4}} {
			ms, total := members(weights...), 0.0
			for _, w := range weights {
				total += float64(w)
			}
			got := simulate(mustBuild(t, name, ms), picks, hold)
			for i, w := range weights {
				share := float64(w) / total
				margin := 5 * math.Sqrt(picks*share*(1-share))
				if name == "hash" || name == "ip-hash" {
					margin += 0.05 * picks * share // what a table may miss
				}
				if want := picks * share; math.Abs(float64(got[i])-want) > margin {
					t.Errorf("%s of %v: member %d has %d picks, want %.0f +- %.0f", name, weights, i, got[i], want, margin)
				}
			}
		}
	}
}

// TestStarterNeverGetsMoreThanItsShare: a new member, which has no connections, is
// the cheapest by far, and still gets at most 5/4 of its ramp's part of its share.
func TestStarterNeverGetsMoreThanItsShare(t *testing.T) {
	const picks = 100000
	for _, name := range []string{"random", "round-robin", "power-of-two", "least-connection", "least-time"} {
		for _, starting := range []int{1, 3, 9} {
			for _, ramp := range []uint16{6554, 32768, 65535} {
				t.Run(fmt.Sprintf("%s/%d of 10 at %d", name, starting, ramp), func(t *testing.T) {
					ms := members(100, 100, 100, 100, 100, 100, 100, 100, 100, 100)
					for i := range starting {
						ms[i].Ramp = ramp
					}
					table, got := mustBuild(t, name, ms), make([]int, len(ms))
					rng := rand.New(rand.NewPCG(11, 12))
					for seq := range uint32(picks) {
						in := Input{Seq: seq, Load: func(i int) Load {
							return Load{Active: uint32(i / starting * 50), Latency: uint32(i / starting * 900)}
						}}
						for i := range in.Rand {
							in.Rand[i] = rng.Uint32()
						}
						got[Pick(table, in)]++
					}
					fair := float64(picks) / float64(len(ms))
					limit := 1.25 * float64(ramp) / 65536 * fair
					if name == "random" || name == "round-robin" || 2*starting > len(ms) {
						limit = 1.25 * fair // their ramp is towards the others' shares, or raised
					}
					limit += 5 * math.Sqrt(limit)
					for i := range starting {
						if g := float64(got[i]); g > limit || g > 1.5*fair {
							t.Errorf("starter %d has %.0f of %d picks, want at most %.0f; a fair share is %.0f", i, g, picks, limit, fair)
						}
						if got[i] == 0 {
							t.Errorf("starter %d has no pick", i)
						}
					}
				})
			}
		}
	}
}

// TestStartersOfDifferentAges: who is nearly through its slow start gets no more
// than 5/4 of a fair share because the others have only begun theirs.
func TestStartersOfDifferentAges(t *testing.T) {
	ms := members(make([]uint16, 10)...)
	for i := range ms {
		ms[i] = Member{ID: uint64(i), Weight: 1, Ramp: uint16(6554 * i)} // member 0 is established
	}
	ws := rampedWeights(ms)
	var total uint64
	for _, w := range ws {
		total += w
	}
	for i, w := range ws[1:] {
		if share := float64(w) / float64(total); share > 0.1251 {
			t.Errorf("starter %d has a share of %.4f, want at most 5/4 of 1/10", i+1, share)
		}
		if w == 0 {
			t.Errorf("starter %d has no weight", i+1)
		}
	}
}

func TestAllStartingIsNobodyStarting(t *testing.T) {
	for _, name := range Names() {
		ms := members(4, 0, 2)
		want := fmt.Sprint(mustBuild(t, name, ms))
		ms[0].Ramp, ms[2].Ramp = 1, 40000
		if got := fmt.Sprint(mustBuild(t, name, ms)); got != want {
			t.Errorf("%s: table %v, want that without slow start %v", name, got, want)
		}
		if ms[0].Ramp != 1 {
			t.Errorf("%s: Build changed its argument", name)
		}
	}
}

// TestTiesRotate: members that cost the same share the connections.
func TestTiesRotate(t *testing.T) {
	const picks = 40000
	for _, name := range []string{"power-of-two", "least-connection", "least-time"} {
		for _, n := range []int{2, 10, 33, 100} {
			table, got := mustBuild(t, name, members(make([]uint16, n)...)), make([]int, n)
			if table.N == 0 {
				ms := members(make([]uint16, n)...)
				for i := range ms {
					ms[i].Weight = 1
				}
				table = mustBuild(t, name, ms)
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for range picks {
				in := Input{Load: idle}
				for i := range in.Rand {
					in.Rand[i] = rng.Uint32()
				}
				got[Pick(table, in)]++
			}
			want := float64(picks) / float64(n)
			for i, g := range got {
				if margin := 5 * math.Sqrt(want); math.Abs(float64(g)-want) > margin {
					t.Errorf("%s of %d idle members: member %d has %d picks, want %.0f +- %.0f", name, n, i, g, want, margin)
				}
			}
		}
	}
}

func TestFactors(t *testing.T) {
	for _, tc := range []struct {
		name    string
		members []Member
		want    []uint32
	}{
		{"equal weights", members(7, 7), nil},
		{"exact", members(1, 2, 3), []uint32{6, 3, 2}},
		{"weight 0", members(2, 0, 2), []uint32{1, 0, 1}},
		{"starter", []Member{{Weight: 2}, {Weight: 1, Ramp: 9}}, []uint32{1, 2 | starting}},
		{"rounded", members(65521, 65519, 65497, 3), []uint32{768, 768, 768, 1 << 24}},
		{"largest ratio", members(65535, 1), []uint32{1, 65535}},
	} {
		if got := factors(tc.members); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: factors %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestCosts(t *testing.T) {
	const huge = 1<<32 - 1
	for _, tc := range []struct {
		load        Load
		factor      uint32
		conns, time uint64
	}{
		{Load{}, 1, 1, 1},
		{Load{Active: 4, Latency: 100}, 3, 15, 96 * 5 * 3},
		{Load{Active: 1}, 1, 2, (1<<23 - 1<<20) * 2},
		{Load{Active: 1, Idle: huge}, 1, 2, (1<<23 - 1<<20) * 2},
		{Load{Latency: 7}, 1, 1, 7},
		{Load{Latency: 15}, 1, 1, 14},
		{Load{Latency: 1000, Idle: 29999}, 1, 1, 896},
		{Load{Latency: 1000, Idle: 30000}, 1, 1, 448},
		{Load{Latency: 1000, Idle: huge}, 1, 1, 1},
		{Load{huge, huge, 0}, 1 << 24, (1<<24 - 1) << 24, (1<<23 - 1<<20) * (1<<16 - 1) << 24},
	} {
		if got := CostConns(tc.load, tc.factor); got != tc.conns {
			t.Errorf("connections of %+v, factor %d: cost %d, want %d", tc.load, tc.factor, got, tc.conns)
		}
		if got := CostTime(tc.load, tc.factor); got != tc.time {
			t.Errorf("time of %+v, factor %d: cost %d, want %d", tc.load, tc.factor, got, tc.time)
		}
	}
}

func TestNextLatency(t *testing.T) {
	for _, tc := range []struct{ old, sample, idle, want uint32 }{
		{0, 500, 0, 500}, {0, 0, 0, 1}, {0, 1<<32 - 1, 0, 1<<23 - 1}, {1, 1, 0, 1}, {1<<32 - 1, 1<<32 - 1, 0, 1<<23 - 1},
		{800, 1600, 29999, 850}, {800, 0, 0, 751}, {8, 1, 0, 8},
		{800, 1600, 30000, 1225}, {800, 0, 60000, 188}, {800, 1600, 1<<32 - 1, 1600}, {800, 80, 1<<32 - 1, 80},
	} {
		if got := NextLatency(tc.old, tc.sample, tc.idle); got != tc.want {
			t.Errorf("average %d and sample %d after %d ms: %d, want %d", tc.old, tc.sample, tc.idle, got, tc.want)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, name := range Names() {
		for _, n := range []int{10, 256, 1000, 5000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				table := mustBuild(b, name, numbered(n, 1))
				loads := make([]Load, n)
				in := Input{Load: func(i int) Load { return loads[i] }}
				rng := rand.New(rand.NewPCG(1, 1))
				for b.Loop() {
					in.Rand[0], in.Rand[2], in.Hash = rng.Uint32(), rng.Uint32(), rng.Uint32()
					in.Seq++
					Pick(table, in)
				}
			})
		}
	}
}
