// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"math/bits"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/algo"
)

// trial is least-connection or least-time with other constants. With the constants
// of algo's least-time it picks what that does. It knows no slow start.
type trial struct {
	run      *run
	byTime   bool
	compare  int    // 0: all
	scatter  bool   // compare random places
	halfLife uint32 // ms; 0: no decay
	bits     int    // significant ones of a latency
	average  int    // a sample moves the average by 1/average
	renew    bool   // and further after a time without one
	busy     string // what happens to the latency of a backend with connections
	factors  []uint32
}

func newTrial(r *run, a *scenario.Algorithm) *trial {
	t := &trial{run: r, byTime: a.Name == scenario.LeastTime, scatter: a.Trial.Scatter, halfLife: 30000, bits: 3, average: 16, renew: true, busy: cmp.Or(a.Trial.Busy, "open")}
	if t.byTime {
		t.compare = algo.FewMembers
	}
	if a.Trial.Renew != nil {
		t.renew = *a.Trial.Renew
	}
	if a.Trial.Compare != nil {
		t.compare = *a.Trial.Compare
	}
	if h := a.Trial.HalfLife; h != 0 {
		t.halfLife = uint32(max(0, time.Duration(h).Milliseconds()))
	}
	t.bits = cmp.Or(a.Trial.Bits, t.bits)
	t.average = cmp.Or(a.Trial.Average, t.average)
	return t
}

func (t *trial) build(p *pool) error {
	ms := slices.Clone(p.members)
	for i := range ms {
		ms[i].Ramp = 0
	}
	table, err := algo.Build(scenario.LeastConnection, ms)
	t.factors = table.Factors
	for i := range t.run.nodes {
		t.run.nodes[i].least = nil
	}
	return err
}

func (t *trial) pick(n *node, in *algo.Input) (int, error) {
	size := len(t.run.pool.members)
	if size == 0 {
		return -1, nil
	}
	visits := size
	if t.compare > 0 {
		visits = min(size, t.compare)
	}
	best, least := -1, uint64(noCost)
	m := int(scale(in.Rand[0], uint32(size)))
	for i := 0; i < visits || best < 0 && i < size; i++ {
		if c := t.cost(m, in.Load(m), n); c < least {
			best, least = m, c
		}
		if m++; t.scatter {
			m = t.run.picks.IntN(size)
		} else if m == size {
			m = 0
		}
	}
	return best, nil
}

func (t *trial) cost(m int, l algo.Load, n *node) uint64 {
	factor := uint32(1)
	if t.factors != nil {
		if factor = t.factors[m]; factor == 0 {
			return noCost
		}
	}
	if !t.byTime {
		return algo.CostConns(l, factor)
	}
	latency := l.Latency
	switch {
	case l.Active > 0 && t.busy == "age":
		latency = max(latency, 1000*min(t.age(m, n), 8000))
	case l.Active > 0 && t.busy == "hold":
	case t.busy == "open" && t.halfLife > 0:
		latency >>= min(t.untried(m, n)/t.halfLife, 31)
	case t.halfLife > 0:
		latency >>= min(l.Idle/t.halfLife, 31)
	}
	if l.Latency == 0 && l.Active > 0 {
		latency = 1<<23 - 1
	}
	latency = rounded(min(max(latency, 1), 1<<23-1), t.bits)
	return uint64(latency) * min(uint64(l.Active)+1, 1<<16-1) * uint64(factor)
}

// age returns for how many ms member m has had connections and not ended one: at
// least one of its connections is that old.
func (t *trial) age(m int, n *node) uint32 {
	l := &n.loads[t.run.pool.backends[m]]
	return uint32(t.run.now*1000) - max(l.changed, l.began)
}

// untried returns for how many ms member m has neither got a connection nor been
// measured.
func (t *trial) untried(m int, n *node) uint32 {
	l := &n.loads[t.run.pool.backends[m]]
	return uint32(t.run.now*1000) - max(l.changed, l.opened)
}

// rounded returns v with its lower bits cleared, so that so many are significant.
func rounded(v uint32, significant int) uint32 {
	drop := max(0, bits.Len32(v)-significant)
	return v >> drop << drop
}

// sample takes a latency in µs into the moving average: as algo does, or 1/average
// of the way to it, and further if the past is stale.
func (t *trial) sample(n *node, backend int32, latency uint32, now float64) {
	l := &n.loads[backend]
	old, stale := int64(l.latency), uint32(0)
	if old == 0 {
		old = int64(latency)
	}
	ms := uint32(now * 1000)
	if t.renew && t.halfLife > 0 {
		stale = min((ms-l.changed)/t.halfLife, 31)
	}
	next := old + (int64(latency)-old)/int64(t.average)
	l.latency = uint32(max(1, int64(latency)+(next-int64(latency))/(1<<stale)))
	l.changed = ms
}
