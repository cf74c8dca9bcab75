// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// Rules choose by fixed probabilities, algorithms by loads that each connection
// changes. What follows turns the one into the other: the shares of connections that
// the algorithm would give to each backend, if it were asked for all that are expected
// until shares are computed again.

// loadShares returns the part of the next connections that each member of a table
// which compares loads should get, sum 1. active is how many connections members have,
// latency how long theirs take (0: unknown; nil: of all), and arrivals how many are expected.
// It returns nil for other tables, and if nobody can be picked.
func loadShares(t algo.Table, active []float64, latency []time.Duration, arrivals float64) []float64 {
	if t.Cost == algo.NoCost || len(active) != int(t.N) {
		return nil
	}
	p := newPicture(t, active, latency, max(arrivals, 0))
	if !slices.ContainsFunc(p.weights, func(w float64) bool { return w > 0 }) {
		return nil
	}
	if t.Kind == algo.Two {
		return p.stepped(p.twoNow)
	}
	return p.least()
}

// waterFill returns the shares of the next arrivals connections that level out active
// connections per weight: the least loaded get them, up to the level L at which the sum of
// max(0, L*weights[i] - active[i]) is arrivals. With no arrivals they go to those at the
// lowest level, by weight. Members of weight 0 get none; if all have, nobody does.
func waterFill(active []float64, weights []float64, arrivals float64) []float64 {
	shares := make([]float64, len(active))
	level, order := waterLevel(active, weights, arrivals)
	if len(order) == 0 {
		return shares
	}
	var sum float64
	for _, i := range order {
		if arrivals > 0 {
			shares[i] = max(0, level*weights[i]-active[i])
		} else if active[i]/weights[i] <= level {
			shares[i] = weights[i]
		}
		sum += shares[i]
	}
	if sum <= 0 { // arrivals are lost in rounding
		return waterFill(active, weights, 0)
	}
	for _, i := range order {
		shares[i] /= sum
	}
	return shares
}

// waterLevel returns the level and the members with weights, lowest first.
func waterLevel(active, weights []float64, arrivals float64) (level float64, order []int) {
	for i, w := range weights {
		if w > 0 {
			order = append(order, i)
		}
	}
	at := func(i int) float64 { return active[i] / weights[i] }
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(at(i), at(j)) })
	if len(order) == 0 {
		return 0, nil
	}
	if arrivals <= 0 {
		return at(order[0]), order
	}
	volume, width := arrivals, 0.0 // what is below the level, and what it stands on
	for k, i := range order {
		volume += active[i]
		width += weights[i]
		level = volume / width
		if k+1 == len(order) || level <= at(order[k+1]) {
			break
		}
	}
	return level, order
}

// rankShares returns the chances to be chosen of members of which two are drawn with
// the given probabilities, one after the other and from all, and that of lower cost wins.
// With T(c) as the chance that one draw costs at least c, those of cost c win with
// T(c)^2 - T(c')^2, where c' is the next higher cost, and share it in proportion to
// their probabilities. probability need not add up to 1.
func rankShares(cost []float64, probability []float64) []float64 {
	shares := make([]float64, len(cost))
	order := make([]int, 0, len(cost))
	var sum float64
	for i, p := range probability {
		if p > 0 {
			order = append(order, i)
			sum += p
		}
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(cost[j], cost[i]) })
	var tail float64 // of those that cost more
	for first := 0; first < len(order); {
		end, group := first, 0.0
		for ; end < len(order) && cost[order[end]] == cost[order[first]]; end++ {
			group += probability[order[end]] / sum
		}
		for _, i := range order[first:end] {
			shares[i] = probability[i] / sum * (2*tail + group)
		}
		tail += group
		first = end
	}
	return shares
}

// factorStart marks the factor of a member in slow start, as algo has it.
const factorStart = 1 << 31

// picture is what shares are computed from. Members that take part only as starters,
// or not at all, have a weight of 0.
type picture struct {
	table    algo.Table
	active   []float64
	weights  []float64 // connections per level: 1/factor, or 1/(factor*latency)
	starting []float64 // the same of starters
	chance   []float64 // of starters: the most that they get
	arrivals float64
}

func newPicture(t algo.Table, active []float64, latency []time.Duration, arrivals float64) *picture {
	p := &picture{
		table: t, active: active, arrivals: arrivals,
		weights: make([]float64, t.N), starting: make([]float64, t.N), chance: make([]float64, t.N),
	}
	times := times(t, latency)
	for i := range p.weights {
		factor := uint32(1)
		if t.Factors != nil {
			factor = t.Factors[i]
		}
		own := factor &^ factorStart
		switch {
		case own == 0:
		case factor == own:
			p.weights[i] = 1 / (float64(own) * times[i])
		default:
			p.starting[i] = 1 / (float64(own) * times[i])
		}
	}
	for _, w := range t.Starters {
		p.chance[w&0xffff] = float64(w>>16) / (1 << 16) / float64(len(t.Starters))
	}
	return p
}

// times returns what a connection to each member takes, in any unit. A member of which
// that is not known yet is taken for as slow as the slowest: it will be known soon, and
// until then too few connections do less harm than too many.
func times(t algo.Table, latency []time.Duration) []float64 {
	out := make([]float64, t.N)
	var slowest time.Duration
	if t.Cost == algo.Time && len(latency) == int(t.N) {
		slowest = slices.Max(latency)
	}
	for i := range out {
		out[i] = 1
		if slowest > 0 {
			out[i] = float64(cmp.Or(latency[i], slowest)) / float64(time.Microsecond)
		}
	}
	return out
}

// steps is into how many parts arrivals are divided where no closed form is exact: each
// part meets the loads that those before it left. Otherwise all would run to the one
// that had the fewest when they were counted.
const steps = 16

// stepped returns the shares over all steps of what now says for one.
func (p *picture) stepped(now func(active []float64, arrivals float64) []float64) []float64 {
	if p.arrivals == 0 {
		return now(p.active, 0)
	}
	part := p.arrivals / steps
	active, sum := slices.Clone(p.active), make([]float64, len(p.active))
	for range steps {
		for i, s := range now(active, part) {
			sum[i] += s / steps
			active[i] += s * part
		}
	}
	return sum
}

// least returns the shares of an algorithm that looks at all members, or at many: these
// level out.
func (p *picture) least() []float64 {
	if len(p.table.Starters) == 0 {
		return waterFill(p.active, p.weights, p.arrivals)
	}
	return p.stepped(p.leastNow)
}

// leastNow returns the shares of a few arrivals. A starter has its chance if it is no
// higher than the others get.
func (p *picture) leastNow(active []float64, arrivals float64) []float64 {
	level, _ := waterLevel(active, p.weights, arrivals)
	starters, rest := make([]float64, len(active)), 1.0
	for i, w := range p.starting {
		if w > 0 && active[i] <= level*w {
			starters[i] = p.chance[i]
			rest -= p.chance[i]
		}
	}
	shares := waterFill(active, p.weights, arrivals*rest)
	for i := range shares {
		shares[i] = shares[i]*rest + starters[i]
	}
	return shares
}

// twoNow returns the chances of the next connection. A starter that is drawn takes it
// from those that cost no less.
func (p *picture) twoNow(active []float64, _ float64) []float64 {
	cost := make([]float64, len(active))
	for i := range cost {
		if w := max(p.weights[i], p.starting[i]); w > 0 {
			cost[i] = (active[i] + 1) / w
		}
	}
	shares := p.ranked(cost)
	taken := make([]float64, len(shares))
	for i, chance := range p.chance {
		if chance == 0 || p.starting[i] == 0 {
			continue
		}
		for j, s := range shares {
			if s > 0 && cost[i] <= cost[j] {
				taken[j] += chance * s
				taken[i] -= chance * s
			}
		}
	}
	for i := range shares {
		shares[i] -= taken[i]
	}
	return shares
}

// ranked returns the shares without starters, which are never drawn.
func (p *picture) ranked(cost []float64) []float64 {
	n := float64(len(cost))
	probability := make([]float64, len(cost))
	for i := range probability {
		if p.table.Alias == nil {
			probability[i] = 1 / n
			continue
		}
		word := p.table.Alias[i]
		own := float64(word>>16) / (1 << 16)
		probability[i] += own / n
		probability[word&0xffff] += (1 - own) / n
	}
	shares := rankShares(cost, probability)
	if p.table.Alias == nil && len(shares) > 1 {
		// Two different ones are drawn: without the cases in which both are the same.
		for i := range shares {
			shares[i] = max(0, (n*shares[i]-1/n)/(n-1))
		}
	}
	return shares
}
