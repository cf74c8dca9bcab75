// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// starting marks the factor of a member in slow start; see internal/algo.
const starting = 1 << 31

// noCost is the cost of what is not a candidate.
const noCost = math.MaxUint64

// leastIndex finds the member of least cost without looking at all. It keeps
// each member's cost and the lowest cost of each group of 32, and picks what a
// plain scan in the order of algo's kind Least would.
type leastIndex struct {
	factors []uint32 // see algo.Table; nil: 1 each
	floors  []uint32 // a cost counts at least so many connections; nil: 0 each
	costs   []uint64 // by member; noCost: not a candidate
	lows    []uint64 // by group
}

// newLeastIndex returns an index of n members that have no connections.
func newLeastIndex(n int, factors, floors []uint32) *leastIndex {
	x := &leastIndex{
		factors: factors, floors: floors,
		costs: make([]uint64, n), lows: make([]uint64, (n+algo.GroupMembers-1)/algo.GroupMembers),
	}
	for m := range x.costs {
		x.costs[m] = x.cost(m, 0)
	}
	for g := range x.lows {
		x.lows[g] = x.low(g)
	}
	return x
}

func (x *leastIndex) cost(m int, active uint32) uint64 {
	factor := uint32(1)
	if x.factors != nil {
		if factor = x.factors[m]; factor == 0 || factor >= starting {
			return noCost
		}
	}
	if x.floors != nil {
		active = max(active, x.floors[m])
	}
	return algo.CostConns(algo.Load{Active: active}, factor)
}

func (x *leastIndex) group(g int) []uint64 {
	return x.costs[g*algo.GroupMembers : min((g+1)*algo.GroupMembers, len(x.costs))]
}

func (x *leastIndex) low(g int) uint64 {
	low := uint64(noCost)
	for _, c := range x.group(g) {
		low = min(low, c)
	}
	return low
}

// set tells of a member's number of connections.
func (x *leastIndex) set(m int, active uint32) {
	was, g := x.costs[m], m/algo.GroupMembers
	cost := x.cost(m, active)
	x.costs[m] = cost
	switch {
	case cost < x.lows[g]:
		x.lows[g] = cost
	case was == x.lows[g] && cost > was:
		x.lows[g] = x.low(g)
	}
}

// pick returns the member that algo's kind Least picks for this random number,
// starters apart, and its cost. It returns -1 if there is no candidate.
func (x *leastIndex) pick(rand uint32) (member int, cost uint64) {
	start := int(scale(rand, uint32(len(x.costs))))
	best, from := uint64(noCost), start/algo.GroupMembers
	group := -1
	for g := from; g < len(x.lows); g++ {
		if x.lows[g] < best {
			best, group = x.lows[g], g
		}
	}
	for g := range from {
		if x.lows[g] < best {
			best, group = x.lows[g], g
		}
	}
	if group < 0 {
		return -1, noCost
	}
	costs := x.group(group)
	off := start % algo.GroupMembers % len(costs)
	for i := range costs {
		k := (off + i) % len(costs)
		if costs[k] == best {
			return group*algo.GroupMembers + k, best
		}
	}
	return -1, noCost // not reached: best is one of the costs
}

// pickStarting is pick with the members in slow start that t has. rand is that of
// the starters.
func (x *leastIndex) pickStarting(t *algo.Table, n *node, p *pool, first, rand uint32) int {
	regular, least := x.pick(first)
	product := uint64(rand) * uint64(len(t.Starters))
	word := t.Starters[product>>32]
	if uint32(product)>>16 >= word>>16 {
		return regular
	}
	m := word & 0xffff
	l := algo.Load{Active: n.loads[p.backends[m]].active}
	if algo.CostConns(l, t.Factors[m]&^starting) <= least {
		return int(m)
	}
	return regular
}

// scale maps a uniform 32-bit number onto [0, n).
func scale(rand, n uint32) uint32 {
	return uint32(uint64(rand) * uint64(n) >> 32)
}
