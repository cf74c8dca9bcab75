// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// naiveSmooth is nginx's loop as it is written there: every member at each step.
func naiveSmooth(turns []int64, total int64) []uint16 {
	order := make([]uint16, total)
	credit := make([]int64, len(turns))
	for k := range order {
		best := -1
		for i := range credit {
			credit[i] += turns[i]
			if turns[i] > 0 && (best < 0 || credit[i] > credit[best]) {
				best = i
			}
		}
		credit[best] -= total
		order[k] = uint16(best)
	}
	return order
}

func TestRoundRobinOrder(t *testing.T) {
	for _, tc := range []struct {
		name    string
		weights []uint16
		want    []uint16
	}{
		{"equal weights need no table", []uint16{7, 7, 7}, nil},
		{"one member needs no table", []uint16{5}, nil},
		{"nginx's example", []uint16{5, 1, 1}, []uint16{0, 0, 1, 0, 2, 0, 0}},
		{"a common divisor shortens the period", []uint16{500, 100, 100}, []uint16{0, 0, 1, 0, 2, 0, 0}},
		{"heavy in the middle", []uint16{1, 2, 1}, []uint16{1, 0, 2, 1}},
		{"weight 0 has no turn", []uint16{0, 2, 1}, []uint16{1, 2, 1}},
		{"only one has weight", []uint16{0, 9, 0}, []uint16{1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := mustBuild(t, "round-robin", members(tc.weights...))
			if !slices.Equal(got.Order, tc.want) {
				t.Errorf("weights %v: order %v, want %v", tc.weights, got.Order, tc.want)
			}
		})
	}
}

func TestRoundRobinEqualsNginx(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		turns, total := make([]int64, 1+rng.IntN(40)), int64(0)
		span := 1 + rng.IntN(12)
		for i := range turns {
			turns[i] = int64(rng.IntN(span + 1))
			total += turns[i]
		}
		if total == 0 {
			continue
		}
		got, want := smooth(turns, total), naiveSmooth(turns, total)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: turns %v:\n got %v\nwant %v", seed, turns, got, want)
		}
	}
}

// TestRoundRobinNeverAhead checks the promise of the doc comment: after k picks
// a member was taken less than k*share + 1 times.
func TestRoundRobinNeverAhead(t *testing.T) {
	ms := members(1, 2, 3, 50, 7, 0, 11)
	order, turns := mustBuild(t, "round-robin", ms).Order, turnsOf(rampedWeights(ms))
	taken := make([]int64, len(ms))
	for k, m := range order {
		taken[m]++
		if ahead := taken[m]*int64(len(order)) - int64(k+1)*turns[m]; ahead >= int64(len(order)) {
			t.Errorf("member %d was taken %d times in %d picks, its share is %d/%d", m, taken[m], k+1, turns[m], len(order))
		}
	}
	for m := range taken {
		if taken[m] != turns[m] {
			t.Errorf("member %d: %d turns in a period, want %d", m, taken[m], turns[m])
		}
	}
}

func TestRoundRobinLongPeriodIsShortened(t *testing.T) {
	for _, weights := range [][]uint16{{65535, 65534, 1}, {65521, 65519, 65497, 3}} {
		ms := members(weights...)
		n := len(mustBuild(t, "round-robin", ms).Order)
		if limit := (orderPerMember + 1) * len(ms); n > limit {
			t.Errorf("weights %v: order of %d entries, want at most %d", weights, n, limit)
		}
		for i, turns := range turnsOf(rampedWeights(ms)) {
			if turns == 0 {
				t.Errorf("weights %v: member %d has no turn", weights, i)
			}
		}
	}
}

// steep returns n members of which as many as fit have distinct turns: the most
// classes a build can meet.
func steep(n int) []Member {
	ms := members(make([]uint16, n)...)
	for i := range ms {
		ms[i].Weight = uint16(max(1, min(i, 700)))
		if i > 700 {
			ms[i].Weight = 1
		}
	}
	return ms
}

// expensive are the member lists whose orders take longest to build.
func expensive() map[string][]Member {
	rng := rand.New(rand.NewPCG(1, 2))
	random := members(make([]uint16, 10000)...)
	for i := range random {
		random[i].Weight = uint16(rng.IntN(1 << 16))
	}
	worst := steep(MaxMembers)
	for i := range 512 {
		worst[i].Weight = uint16(min(65535, (i+1)*128))
	}
	for i := 512; i < len(worst); i++ {
		worst[i].Weight = 1
	}
	return map[string][]Member{
		"65535 with the most work":    worst,
		"10000 of random weight":      random,
		"10000 most distinct turns":   steep(10000),
		"65535 most distinct turns":   steep(MaxMembers),
		"9000 with the longest order": steep(9000),
	}
}

// TestRoundRobinWorkIsBounded counts what a build does; BenchmarkRoundRobin says
// how long that takes.
func TestRoundRobinWorkIsBounded(t *testing.T) {
	const most = 1 << 27 // inner steps
	for name, ms := range expensive() {
		t.Run(name, func(t *testing.T) {
			turns, total := turnsOf(rampedWeights(ms)), int64(0)
			for _, n := range turns {
				total += n
			}
			classes, _ := classesOf(turns)
			t.Logf("%d entries, %d classes", total, len(classes))
			if work := total * int64(len(classes)); work > most {
				t.Errorf("%d entries of %d classes are %d steps, want at most %d", total, len(classes), work, most)
			}
		})
	}
}

func BenchmarkRoundRobin(b *testing.B) {
	for name, ms := range expensive() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				mustBuild(b, "round-robin", ms)
			}
		})
	}
}
