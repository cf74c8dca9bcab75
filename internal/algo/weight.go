// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"math/bits"
	"slices"
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
// 1/rampUnit if some are starting. A starter has its ramp's part of its weight,
// and less if it would get more than 5/4 of its fair share, which is its full
// weight's among all full weights: that happens when most are starting.
func rampedWeights(ms []Member) []uint64 {
	var full, part, most uint64 // of all; of starters, in 1/65536; the largest ramp
	ws := make([]uint64, len(ms))
	for i, m := range ms {
		ws[i] = uint64(m.Weight)
		full += uint64(m.Weight)
		if isStarter(m) {
			part += uint64(m.Weight) * uint64(m.Ramp)
			most = max(most, uint64(m.Ramp))
		}
	}
	if part == 0 {
		return ws
	}
	var established uint64
	for _, m := range ms {
		if !isStarter(m) {
			established += uint64(m.Weight)
		}
	}
	// Starters with x times their ramped weights: x*most/(established + x*part)
	// is at most 5/4 * 1/full.
	num, den := uint64(1), uint64(1)
	if 4*most*full > 5*(established<<16+part) {
		num, den = 5*established<<16, 4*most*full-5*part
	}
	for i, m := range ms {
		ws[i] *= rampUnit
		if isStarter(m) {
			hi, lo := bits.Mul64(uint64(m.Weight)*uint64(m.Ramp)*rampUnit>>16, num)
			q, _ := bits.Div64(hi, lo, den)
			ws[i] = max(1, q)
		}
	}
	return ws
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

// starters returns the members in slow start as chance<<16 | index, or nil. Of
// k starters each is drawn with probability 1/k and then has its chance, which
// is such that it is a candidate in at most 5/4 * ramp * its fair share of all
// picks. That limits it even though it costs less than all others.
func starters(ms []Member) []uint32 {
	var count, full uint64
	for _, m := range ms {
		full += uint64(m.Weight)
		if isStarter(m) {
			count++
		}
	}
	if count == 0 {
		return nil
	}
	words := make([]uint32, 0, count)
	for i, m := range ms {
		if isStarter(m) {
			chance := min(count*5*uint64(m.Ramp)*uint64(m.Weight)/(4*full), 1<<16-1)
			words = append(words, uint32(chance)<<16|uint32(i))
		}
	}
	return words
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
