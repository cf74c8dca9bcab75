// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"slices"
	"sort"
)

// maxFactor is the largest factor, and the resolution of those that are rounded.
const maxFactor = 1 << 24

// starting marks the factor of a member in slow start.
const starting = 1 << 31

// settled returns ms without ramps if no member of some weight has completed its
// slow start: there is nobody to shelter the others.
func settled(ms []Member) []Member {
	if slices.ContainsFunc(ms, func(m Member) bool { return m.Weight > 0 && m.Ramp == 0 }) {
		return ms
	}
	out := slices.Clone(ms)
	for i := range out {
		out[i].Ramp = 0
	}
	return out
}

// isStarter says whether m is in slow start.
func isStarter(m Member) bool {
	return m.Weight > 0 && m.Ramp > 0
}

// uniform says whether all members have the same weight and none is starting.
func uniform(ms []Member) bool {
	return !slices.ContainsFunc(ms, func(m Member) bool { return m.Weight != ms[0].Weight || isStarter(m) })
}

// rampUnit is the weight of 1 in the weights that rampedWeights returns: ramps
// need finer steps than weights have.
const rampUnit = 4096

// rampedWeights returns the weights that members have for now, in units of
// 1/rampUnit if some are starting. A starter has its ramp's part of its weight. Where
// most members are starting, two things limit that. No starter gets more than 5/4 of
// its fair share, which is its full weight's among all full weights. And the parts of
// all starters are raised by one factor, such that the others get no more than twice
// their fair share.
func rampedWeights(ms []Member) []uint64 {
	var full, established uint64
	ws := make([]uint64, len(ms))
	for i, m := range ms {
		ws[i] = uint64(m.Weight)
		full += uint64(m.Weight)
		if !isStarter(m) {
			established += uint64(m.Weight)
		}
	}
	if established == full {
		return ws
	}
	const half = 5 << 16 / 8 // the largest ramp, where all ramped weights are half of full
	if sum := established<<16 + rampedSum(ms, half); sum < full<<15 {
		parts, limits := make([]uint64, len(ms)), make([]uint64, len(ms))
		for i, m := range ms {
			parts[i], limits[i] = ramped(m, half), half*ws[i]
		}
		raise(parts, limits, full<<15-established<<16)
		for i, m := range ms {
			ws[i] = rampedWeight(m, parts[i])
		}
		return ws
	}
	limit := half + sort.Search(1<<16-half, func(more int) bool {
		next := half + uint64(more) + 1
		return next*4*full > 5*(established<<16+rampedSum(ms, next))
	})
	for i, m := range ms {
		ws[i] = rampedWeight(m, ramped(m, uint64(limit)))
	}
	return ws
}

// ramped returns the part of m's weight, in 1/65536, that its ramp leaves it if that
// is at most limit. It is 0 for members that are not starting.
func ramped(m Member, limit uint64) uint64 {
	return uint64(m.Weight) * min(uint64(m.Ramp), limit)
}

// rampedSum returns the sum of what ramped returns.
func rampedSum(ms []Member, limit uint64) (sum uint64) {
	for _, m := range ms {
		sum += ramped(m, limit)
	}
	return sum
}

// rampedWeight returns the weight of m in units of 1/rampUnit. part is the part that
// it has if it is starting, in 1/65536.
func rampedWeight(m Member, part uint64) uint64 {
	if !isStarter(m) {
		return uint64(m.Weight) * rampUnit
	}
	return max(1, part*rampUnit>>16)
}

// equal says whether all weights are the same.
func equal(ws []uint64) bool {
	return !slices.ContainsFunc(ws, func(w uint64) bool { return w != ws[0] })
}

// factors returns what one connection costs at each member, in proportion to
// 1/weight: lcm/weight if that fits, otherwise rounded to 1/2^24 of the largest.
// 0 is a member of weight 0; starters are marked. nil means 1 for each member.
func factors(ms []Member) []uint32 {
	if uniform(ms) {
		return nil
	}
	low := uint64(1 << 16)
	for _, m := range ms {
		if m.Weight > 0 {
			low = min(low, uint64(m.Weight))
		}
	}
	multiple, exact := commonMultiple(ms, low*maxFactor)
	fs := make([]uint32, len(ms))
	for i, m := range ms {
		w := uint64(m.Weight)
		switch {
		case w == 0:
			continue
		case exact:
			fs[i] = uint32(multiple / w)
		default:
			fs[i] = uint32((low*maxFactor + w/2) / w)
		}
		if isStarter(m) {
			fs[i] |= starting
		}
	}
	return fs
}

// commonMultiple returns the least common multiple of the weights above 0, if it
// is at most limit. limit is below 2^48.
func commonMultiple(ms []Member, limit uint64) (multiple uint64, ok bool) {
	multiple = 1
	for _, m := range ms {
		if w := uint64(m.Weight); w > 0 {
			multiple *= w / gcd(multiple, w)
		}
		if multiple > limit {
			return 0, false
		}
	}
	return multiple, true
}

// chanceBits is the resolution of chances while they are computed; those in a table
// have 16 bits.
const chanceBits = 28

// starters returns the members in slow start as chance<<16 | index, or nil. Of
// k starters each is drawn with probability 1/k and then has its chance, which
// is such that it is a candidate in 5/4 * ramp * its fair share of all picks. That
// limits it even though it costs less than all others.
//
// Where most members are starting, the others would get nearly everything. Then all
// chances are raised by one factor, such that the others get no more than twice their
// fair share, but no chance to more than 5/4 of the starter's fair share.
func starters(ms []Member) []uint32 {
	var count, full, part uint64 // part: of full, the starters' weight
	for _, m := range ms {
		full += uint64(m.Weight)
		if isStarter(m) {
			count++
			part += uint64(m.Weight)
		}
	}
	if count == 0 {
		return nil
	}
	var chances, limits []uint64
	var indexes []uint32
	for i, m := range ms {
		if isStarter(m) {
			limit := count * 5 * uint64(m.Weight) << (chanceBits - 2) / full
			chance := count * 5 * uint64(m.Ramp) * uint64(m.Weight) << (chanceBits - 18) / full
			limits = append(limits, min(limit, 1<<chanceBits))
			chances = append(chances, min(chance, limit, 1<<chanceBits))
			indexes = append(indexes, uint32(i))
		}
	}
	if established := full - part; full > 2*established {
		raise(chances, limits, count*((full-2*established)<<chanceBits/full))
	}
	for i, c := range chances {
		const drop = chanceBits - 16
		indexes[i] |= uint32(min(max((c+1<<drop-1)>>drop, 1), 1<<16-1)) << 16
	}
	return indexes
}

// raise multiplies xs by the smallest factor of at least 1 that makes their sum at
// least want, or as much as limits permits. xs are below 1<<32; xs[i] stays at most
// limits[i].
func raise(xs, limits []uint64, want uint64) {
	const one, most = 1 << 16, 1 << 32 // factors; a ramp is at least 1/most of one
	raised := func(i int, factor uint64) uint64 { return min(xs[i]*factor/one, limits[i]) }
	factor := one + sort.Search(most-one, func(f int) bool {
		var sum uint64
		for i := range xs {
			sum += raised(i, one+uint64(f))
		}
		return sum >= want
	})
	for i := range xs {
		xs[i] = raised(i, uint64(factor))
	}
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
